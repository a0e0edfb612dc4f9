"""MobileNetV2 cut into the four blocks of a tree.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR
2018; Ruiz and Verbeek (AAAI 2021) make trees of eight leaves of it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from hne_tf.errors import InputError
from hne_tf.models.architectures import settings
from hne_tf.models.architectures.architecture import Architecture
from hne_tf.models.layers.factory import Convolution, LayerFactory

if TYPE_CHECKING:
    from keras import KerasTensor

STAGE_WIDTHS = (16, 24, 32, 64, 96, 160, 320)
STEM_WIDTH = 32
LAST_WIDTH = 1280
# Stages of each block; the stem comes before the first, a convolution after the last.
BLOCKS = ((0, 1, 2), (3,), (4,), (5, 6))


@dataclasses.dataclass(frozen=True)
class MobileNetV2(Architecture):
    """Settings of the network; as they stand it is the paper's.

    Stages of inverted residual units follow a 3x3 stem. A unit widens its input
    six times (not at all in the first stage) with a 1x1, convolves it depthwise
    3x3 and projects it with a 1x1 without activation; where shape allows, it
    adds its input. All other activations are ReLU6.

    Attributes:
      width_multiplier: of all channels, rounded to multiples of 8 and at most
        10% down; the last convolution keeps 1,280 below 1.
      units: inverted residual units in each of the seven stages.
      strides: stride of the first unit of each stage.
      stem_stride: stride of the first convolution; 1 suits small images.

    Raises:
      InputError: unless the multiplier is a positive number, and the rest are
        positive integers, seven in each tuple.
    """

    width_multiplier: float = 1.0
    units: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    stem_stride: int = 2

    def __post_init__(self) -> None:
        multiplier = self.width_multiplier
        number = isinstance(multiplier, (int, float)) and not isinstance(multiplier, bool)
        if not number or not 0 < multiplier < math.inf:
            raise InputError(f"width_multiplier must be a positive number, got {multiplier}")
        for field in ("units", "strides"):
            values = settings.positive_integers(field, getattr(self, field))
            if len(values) != len(STAGE_WIDTHS):
                raise InputError(
                    f"{field} must have one entry for each of {len(STAGE_WIDTHS)} stages, "
                    f"got {values}"
                )
            object.__setattr__(self, field, values)
        settings.positive_integer("stem_stride", self.stem_stride)

    @property
    def blocks(self) -> int:
        """Number of blocks, which the tree must match."""
        return len(BLOCKS)

    def block(self, layers: LayerFactory, block: int, x: KerasTensor) -> KerasTensor:
        """Applies block number `block`."""
        if block == 0:
            width = _divisible(STEM_WIDTH * self.width_multiplier)
            x = layers.conv(x, "stem", Convolution(width, 3, self.stem_stride, "relu6"))
        for stage in BLOCKS[block]:
            # Truncated first, as keras.applications does: its weights must fit.
            width = _divisible(int(STAGE_WIDTHS[stage] * self.width_multiplier))
            expansion = 6 if stage else 1
            for unit in range(self.units[stage]):
                strides = 1 if unit else self.strides[stage]
                x = _inverted_residual(
                    layers, f"stage{stage}.unit{unit}", x, width, expansion, strides
                )
        if block == self.blocks - 1:
            width = _divisible(LAST_WIDTH * max(1.0, self.width_multiplier))
            x = layers.conv(x, "last", Convolution(width, activation="relu6"))
        return x


def _inverted_residual(
    layers: LayerFactory,
    name: str,
    x: KerasTensor,
    width: int,
    expansion: int,
    strides: int,
) -> KerasTensor:
    y, channels = x, x.shape[-1]
    if expansion > 1:
        y = layers.conv(y, f"{name}.expand", Convolution(expansion * channels, activation="relu6"))
    each = Convolution.depthwise(strides=strides, activation="relu6")
    y = layers.conv(y, f"{name}.depthwise", each)
    y = layers.conv(y, f"{name}.project", Convolution(width, activation=None))
    return layers.add([x, y], f"{name}.add") if strides == 1 and channels == width else y


def _divisible(channels: float) -> int:
    """The multiple of 8 that is nearest to `channels`, but not more than 10% below."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


MobileNetV2.presets = {"small": MobileNetV2(0.5), "large": MobileNetV2(1.0)}
