"""Hierarchical neural ensembles: one tree of networks, an answer for every budget.

Ruiz and Verbeek, "Anytime Inference with Distilled Hierarchical Neural
Ensembles", AAAI 2021, arXiv 2003.01474.
"""

import importlib
from typing import Any

# Loaded when first used: `hne_tf.training.config` and the command line need no TensorFlow.
_LAZY = {"from_pretrained": "hne_tf.pretrained"}

__all__ = ["__version__", "from_pretrained"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("hne_tf")
    except metadata.PackageNotFoundError:
        # A checkout that is on the path but not installed.
        return "0+unknown"
