"""Layer factories: what a convolution becomes.

`FACTORIES` is the registry: a new factory needs a line there.
"""

import importlib
from typing import Any

# The module of each class, loaded when the class is used: some need TensorFlow itself.
FACTORIES = {
    "TrainingLayers": "training",
    "DeployLayers": "deploy",
    "GroupedLayers": "grouped",
    "FusedTrainingLayers": "fused",
    "FusedGroupedLayers": "fused",
    "QuantizedLayers": "quantized",
    "ServedLayers": "served",
}


def __getattr__(name: str) -> Any:
    if name not in FACTORIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{FACTORIES[name]}"), name)
