"""Hierarchical neural ensembles: one tree of networks, an answer for every budget.

    import hne_tf as hne

    model = hne.TreeEnsemble(hne.architectures.ResNet(...), hne.Tree((1, 2, 2)), images)
    model.compile("sgd", loss=hne.losses.HierarchicalDistillation())
    model.fit(x, y)
    hne.export(model, "models/flowers", test=(x_test, y_test))
    hne.load("models/flowers").predict(x, deadline_ms=3)

Ruiz and Verbeek, "Anytime Inference with Distilled Hierarchical Neural
Ensembles", AAAI 2021, arXiv 2003.01474.
"""

import importlib
import sys
import types
import typing
from typing import Any

if typing.TYPE_CHECKING:
    from hne_tf import data, metrics
    from hne_tf import objectives as losses
    from hne_tf.client.anytime_client import AnytimeClient
    from hne_tf.client.async_client import AsyncBudgetClient
    from hne_tf.client.budget_client import BudgetClient
    from hne_tf.client.spread_client import SpreadClient
    from hne_tf.compression.compressor import compress
    from hne_tf.errors import InputError
    from hne_tf.evaluation.evaluation import evaluate
    from hne_tf.exits import Exits
    from hne_tf.export.exporter import export
    from hne_tf.export.tflite import convert_tflite
    from hne_tf.exported.model import load
    from hne_tf.image_spec import ImageSpec
    from hne_tf.models import architectures, layers
    from hne_tf.models.ensemble import TreeEnsemble
    from hne_tf.models.grouped_ensemble import GroupedEnsemble
    from hne_tf.pretrained import from_pretrained
    from hne_tf.server.serve import serve
    from hne_tf.tree import Tree

# Where each public name is found when it is first used: `import hne_tf` loads no TensorFlow.
_MODULES = {
    "architectures": "hne_tf.models.architectures",
    "data": "hne_tf.data",
    "layers": "hne_tf.models.layers",
    "losses": "hne_tf.objectives",
    "metrics": "hne_tf.metrics",
}
_NAMES = {
    "AnytimeClient": "hne_tf.client.anytime_client",
    "AsyncBudgetClient": "hne_tf.client.async_client",
    "BudgetClient": "hne_tf.client.budget_client",
    "Exits": "hne_tf.exits",
    "GroupedEnsemble": "hne_tf.models.grouped_ensemble",
    "ImageSpec": "hne_tf.image_spec",
    "InputError": "hne_tf.errors",
    "SpreadClient": "hne_tf.client.spread_client",
    "Tree": "hne_tf.tree",
    "TreeEnsemble": "hne_tf.models.ensemble",
    "compress": "hne_tf.compression.compressor",
    "convert_tflite": "hne_tf.export.tflite",
    "evaluate": "hne_tf.evaluation.evaluation",
    "export": "hne_tf.export.exporter",
    "from_pretrained": "hne_tf.pretrained",
    "load": "hne_tf.exported.model",
    "serve": "hne_tf.server.serve",
}

__all__ = [
    "AnytimeClient",
    "AsyncBudgetClient",
    "BudgetClient",
    "Exits",
    "GroupedEnsemble",
    "ImageSpec",
    "InputError",
    "SpreadClient",
    "Tree",
    "TreeEnsemble",
    "__version__",
    "architectures",
    "compress",
    "convert_tflite",
    "data",
    "evaluate",
    "export",
    "from_pretrained",
    "layers",
    "load",
    "losses",
    "metrics",
    "serve",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("hne_tf")
    except metadata.PackageNotFoundError:
        # A checkout that is on the path but not installed.
        return "0+unknown"


class _Package(types.ModuleType):
    """Keeps `hne_tf.export` the function, whichever room was imported before."""

    @property
    def export(self) -> Any:
        return __getattr__("export")

    @export.setter
    def export(self, room: types.ModuleType) -> None:
        """Takes the room that the import system sets; imports find it without."""


sys.modules[__name__].__class__ = _Package
