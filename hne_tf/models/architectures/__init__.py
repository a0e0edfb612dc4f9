"""Networks cut into blocks, written once against a layer factory. Imports no Keras.

`ARCHITECTURES` is the registry: a new file beside the others needs a line there.
"""

import dataclasses
from collections.abc import Mapping

from hne_tf.errors import InputError
from hne_tf.models import import_path
from hne_tf.models.architectures.architecture import Architecture
from hne_tf.models.architectures.mobilenet_v2 import MobileNetV2
from hne_tf.models.architectures.msdnet import MSDNet
from hne_tf.models.architectures.resnet import ResNet
from hne_tf.models.layers.factory import Convolution, LayerFactory

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "ArchitectureEntry",
    "Convolution",
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
      kind: the class.
      exits: whether it makes a single network with a classifier after each block,
        instead of a tree.
    """

    kind: type[Architecture]
    exits: bool = False

    @property
    def settings(self) -> Mapping[str, type]:
        """The type of each setting, as the presets have it."""
        preset = next(iter(self.kind.presets.values()))
        return {name: type(value) for name, value in preset.get_config().items()}


# By the name that a config gives them.
ARCHITECTURES: Mapping[str, ArchitectureEntry] = {
    "resnet": ArchitectureEntry(ResNet),
    "mobilenet_v2": ArchitectureEntry(MobileNetV2),
    "multi_exit": ArchitectureEntry(ResNet, exits=True),
    "msdnet": ArchitectureEntry(MSDNet, exits=True),
}


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
    kind = import_path.load("model.architecture", name)
    if not issubclass(kind, Architecture):
        raise InputError(f"model.architecture must name a subclass of Architecture, got {name!r}")
    return ArchitectureEntry(kind, kind.exits)
