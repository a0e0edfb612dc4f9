"""A CIFAR residual network cut into blocks, for a tree or with an exit after each.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. The
bottleneck unit with a depthwise 3x3 is the one of Ruiz and Verbeek (AAAI 2021).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from hne_tf.errors import InputError
from hne_tf.models.architectures import settings
from hne_tf.models.architectures.architecture import Architecture
from hne_tf.models.layers.factory import Convolution, LayerFactory

if TYPE_CHECKING:
    from keras import KerasTensor


@dataclasses.dataclass(frozen=True)
class ResNet(Architecture):
    """Settings of the network; every block has one entry in each tuple.

    Attributes:
      unit: `"bottleneck"` (1x1, depthwise 3x3, 1x1; the middle half as wide as
        the output) or `"basic"` (two 3x3: fast on CPU).
      widths: output channels of each block.
      units: residual units in each block.
      strides: stride of the first unit of each block.
      stem_width: channels of the 3x3 convolution before the first unit.

    Raises:
      InputError: if the tuples differ in length or hold anything but positive
        integers, or the unit is unknown.
    """

    unit: str
    widths: tuple[int, ...]
    units: tuple[int, ...]
    strides: tuple[int, ...]
    stem_width: int = 16

    def __post_init__(self) -> None:
        if self.unit not in _UNITS:
            raise InputError(f"unit must be one of {', '.join(_UNITS)}, got {self.unit!r}")
        for field in ("widths", "units", "strides"):
            values = settings.positive_integers(field, getattr(self, field))
            object.__setattr__(self, field, values)
        if not len(self.widths) == len(self.units) == len(self.strides):
            raise InputError(
                "widths, units and strides must have one entry per block, got "
                f"{self.widths}, {self.units} and {self.strides}"
            )
        settings.positive_integer("stem_width", self.stem_width)

    @property
    def blocks(self) -> int:
        """Number of blocks, which the tree must match."""
        return len(self.widths)

    def block(self, layers: LayerFactory, block: int, x: KerasTensor) -> KerasTensor:
        """Applies block number `block`."""
        if block == 0:
            x = layers.conv(x, "stem", Convolution(self.stem_width, kernel_size=3))
        for index in range(self.units[block]):
            strides = self.strides[block] if index == 0 else 1
            x = _residual(layers, f"unit{index}", x, _UNITS[self.unit], self.widths[block], strides)
        return x


def _residual(
    layers: LayerFactory,
    name: str,
    x: KerasTensor,
    branch: Callable[..., KerasTensor],
    width: int,
    strides: int,
) -> KerasTensor:
    shortcut = x
    if strides > 1 or x.shape[-1] != width:
        shortcut = layers.conv(
            x, f"{name}.shortcut", Convolution(width, strides=strides, activation=None)
        )
    y = branch(layers, name, x, width, strides)
    return layers.add([shortcut, y], f"{name}.add", activation="relu")


def _bottleneck_branch(
    layers: LayerFactory, name: str, x: KerasTensor, width: int, strides: int
) -> KerasTensor:
    x = layers.conv(x, f"{name}.conv1", Convolution(max(1, width // 2)))
    x = layers.conv(x, f"{name}.conv2", Convolution.depthwise(strides=strides))
    return layers.conv(x, f"{name}.conv3", Convolution(width, activation=None, zero_gamma=True))


def _basic_branch(
    layers: LayerFactory, name: str, x: KerasTensor, width: int, strides: int
) -> KerasTensor:
    x = layers.conv(x, f"{name}.conv1", Convolution(width, kernel_size=3, strides=strides))
    last = Convolution(width, kernel_size=3, activation=None, zero_gamma=True)
    return layers.conv(x, f"{name}.conv2", last)


_UNITS = {"bottleneck": _bottleneck_branch, "basic": _basic_branch}

ResNet.presets = {
    "small": ResNet("bottleneck", (16, 32, 64, 64, 64), (3,) * 5, (1, 2, 2, 1, 1)),
    "large": ResNet(
        "bottleneck", (32, 64, 128, 128, 128), (3,) * 5, (1, 2, 2, 1, 1), stem_width=32
    ),
}
