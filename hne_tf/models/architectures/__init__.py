"""Networks cut into blocks, written once against a layer factory. Imports no Keras.

`ARCHITECTURES` is the registry: a new file beside the others needs a line there. Classes
are loaded when they are first used.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hne_tf import import_path
from hne_tf.errors import InputError
from hne_tf.models.architectures.architecture import Architecture
from hne_tf.models.functional import settings as functional_settings
from hne_tf.models.layers.factory import Convolution, LayerFactory

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "ArchitectureEntry",
    "Convolution",
    "KerasFunctional",
    "LayerFactory",
    "MSDNet",
    "MobileNetV2",
    "ResNet",
    "find",
]


@dataclasses.dataclass(frozen=True)
class ArchitectureEntry:
    """What the name of an architecture in a config stands for.

    Attributes:
      path: import path of the class.
      exits: whether it makes a single network with a classifier after each block,
        instead of a tree.
      defaults: of the settings that a config has, for a class without presets that is
        not made of them alone.
    """

    path: str
    exits: bool = False
    defaults: Mapping[str, Any] | None = None

    @property
    def kind(self) -> type[Architecture]:
        """The class."""
        return import_path.load("model.architecture", self.path)

    @property
    def settings(self) -> Mapping[str, type]:
        """The type of each setting, as the presets have it."""
        preset = next(iter(self.kind.presets.values()))
        return {name: type(value) for name, value in preset.get_config().items()}


_ROOM = "hne_tf.models.architectures"

# By the name that a config gives them.
ARCHITECTURES: Mapping[str, ArchitectureEntry] = {
    "resnet": ArchitectureEntry(f"{_ROOM}.resnet:ResNet"),
    "mobilenet_v2": ArchitectureEntry(f"{_ROOM}.mobilenet_v2:MobileNetV2"),
    "multi_exit": ArchitectureEntry(f"{_ROOM}.resnet:ResNet", exits=True),
    "keras": ArchitectureEntry(
        f"{_ROOM}.keras_functional:KerasFunctional", defaults=functional_settings.DEFAULTS
    ),
    "msdnet": ArchitectureEntry(f"{_ROOM}.msdnet:MSDNet", exits=True),
}

_PATHS = {entry.path.split(":")[1]: entry.path for entry in ARCHITECTURES.values()}


def find(name: str) -> ArchitectureEntry:
    """The architecture of a name in a config, or of an import path, `my_module:MyNetwork`.

    Raises:
      InputError: if there is no such architecture.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if not import_path.is_import_path(name):
        raise InputError(
            f"architecture must be one of {', '.join(ARCHITECTURES)} or an import path such as "
            f"my_module:MyNetwork, got {name!r}"
        )
    kind = ArchitectureEntry(name).kind
    if not issubclass(kind, Architecture):
        raise InputError(f"model.architecture must name a subclass of Architecture, got {name!r}")
    return ArchitectureEntry(name, kind.exits)


def __getattr__(name: str) -> Any:
    if name not in _PATHS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_path.load("model.architecture", _PATHS[name])
