"""The multi-scale dense network for CIFAR, cut into the blocks between its exits.

Huang et al., "Multi-Scale Dense Networks for Resource Efficient Image
Classification", ICLR 2018. A layer adds features to each scale: half of them by a
strided convolution of all that the next finer scale has, half by one of all that
the scale itself has. Exits see the coarsest scale, which therefore is there from
the first layer on. "Network reduction" (section 4 of the paper) drops the finest
scale after each of as many parts of the network as there are scales.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from hne_tf.errors import InputError
from hne_tf.models.architectures.architecture import Architecture
from hne_tf.models.layers.factory import Convolution, LayerFactory
from hne_tf.tree import is_positive_integer

if TYPE_CHECKING:
    from keras import KerasTensor as Tensor


@dataclasses.dataclass(frozen=True)
class MSDNet(Architecture):
    """Settings of the network; an activation is a list of tensors from fine to coarse.

    Attributes:
      units: layers in each block.
      growth: channels that a layer adds to the finest scale; even, unless the
        factors of all coarser scales are.
      scale_factors: multiples of `growth` and `stem_width` on each scale, one entry per
        scale from fine to coarse. The finest has the pictures' size, and each
        further one half of it.
      bottlenecks: a convolution of features of a scale comes after a 1x1 one of at
        most this multiple of its width, one entry per scale; 0 for none.
      stem_width: channels of the first layer on the finest scale.
      reduction: part of the channels that the 1x1 convolution leaves which follows
        where a scale is dropped.
      head_width: channels of the two convolutions of a classifier.

    Raises:
      InputError: for settings out of range or that do not fit each other.
    """

    units: tuple[int, ...]
    growth: int = 6
    scale_factors: tuple[int, ...] = (1, 2, 4)
    bottlenecks: tuple[int, ...] = (1, 2, 4)
    stem_width: int = 16
    reduction: float = 0.5
    head_width: int = 128

    def __post_init__(self) -> None:
        for field in ("units", "scale_factors", "bottlenecks"):
            values = getattr(self, field)
            listed = isinstance(values, (tuple, list))
            least = 0 if field == "bottlenecks" else 1
            if not listed or not values or not all(type(v) is int and v >= least for v in values):
                raise InputError(f"{field} must be integers of {least} or more, got {values}")
            object.__setattr__(self, field, tuple(values))
        for field in ("growth", "stem_width", "head_width"):
            if not is_positive_integer(getattr(self, field)):
                raise InputError(f"{field} must be a positive integer, got {getattr(self, field)}")
        if len(self.bottlenecks) != len(self.scale_factors):
            raise InputError(
                "bottlenecks and scale_factors must have one entry per scale, got "
                f"{self.bottlenecks} and {self.scale_factors}"
            )
        if any(self.growth * factor % 2 for factor in self.scale_factors[1:]):
            raise InputError(
                "growth times a coarser scale's factor must be even, for half comes from the finer "
                f"scale, got growth {self.growth} and scale_factors {self.scale_factors}"
            )
        if sum(self.units) < len(self.scale_factors):
            raise InputError(
                f"units must be as many layers as there are scales, {len(self.scale_factors)}, or "
                f"more, got {self.units}"
            )
        if not 0 < self.reduction <= 1:
            raise InputError(f"reduction must be above 0 and at most 1, got {self.reduction}")

    @property
    def blocks(self) -> int:
        """Number of blocks, which the tree must match."""
        return len(self.units)

    def scales(self, layer: int) -> int:
        """Number of scales, the coarsest ones, that a layer (from 0) leaves.

        The layers are divided into as many parts as there are scales. The last layers
        leave only what still reaches the last exit.
        """
        total, scales = sum(self.units), len(self.scale_factors)
        return min(scales - layer // math.ceil(total / scales), total - layer)

    def block(self, layers: LayerFactory, block: int, x: Tensor | list[Tensor]) -> list[Tensor]:
        """Applies block number `block`, to images if it is the first."""
        features = self._stem(layers, x) if block == 0 else x
        before = sum(self.units[:block])
        for unit in range(self.units[block]):
            kept = self.scales(before + unit)
            features = self._layer(layers, f"unit{unit}", features, kept)
        return features

    def head(self, layers: LayerFactory, x: list[Tensor], classes: int) -> Tensor:
        """Logits `[batch, classes]` of the coarsest of a block's scales."""
        convolution = Convolution(self.head_width, kernel_size=3, strides=2)
        y = layers.conv(x[-1], "exit.conv1", convolution)
        y = layers.conv(y, "exit.conv2", convolution)
        return layers.head(layers.pool(y, "pool"), "head", classes)

    def _stem(self, layers: LayerFactory, x: Tensor) -> list[Tensor]:
        """The first layer: each scale is a strided convolution of the one before."""
        features = []
        for scale, factor in enumerate(self.scale_factors):
            width, strides = self.stem_width * factor, 2 if scale else 1
            x = layers.conv(x, f"stem.scale{scale}", Convolution(width, 3, strides))
            features.append(x)
        return features

    def _layer(
        self, layers: LayerFactory, name: str, features: list[Tensor], kept: int
    ) -> list[Tensor]:
        """Adds features to the `kept` coarsest scales; drops the others and thins these out."""
        scales = len(self.scale_factors)
        by_scale = dict(enumerate(features, start=scales - len(features)))
        grown = []
        for scale in range(scales - kept, scales):
            unit, width = f"{name}.scale{scale}", self.growth * self.scale_factors[scale]
            parts = [by_scale[scale]]
            if scale - 1 in by_scale:
                width //= 2
                parts.append(
                    self._conv(layers, f"{unit}.down", by_scale[scale - 1], scale - 1, width, 2)
                )
            parts.append(self._conv(layers, f"{unit}.same", by_scale[scale], scale, width, 1))
            grown.append(layers.concat(parts, f"{unit}.concat"))
        if kept < len(features):
            grown = self._transition(layers, name, grown)
        return grown

    def _conv(
        self, layers: LayerFactory, name: str, x: Tensor, scale: int, width: int, strides: int
    ) -> Tensor:
        """A 3x3 convolution of features of `scale`, after its bottleneck."""
        if bottleneck := self.bottlenecks[scale]:
            x = layers.conv(x, f"{name}.conv1", Convolution(min(x.shape[-1], bottleneck * width)))
        return layers.conv(x, f"{name}.conv2", Convolution(width, 3, strides))

    def _transition(self, layers: LayerFactory, name: str, features: list[Tensor]) -> list[Tensor]:
        """1x1 convolutions to the reduced number of channels."""
        scales = len(self.scale_factors)
        thinned = []
        for scale, x in enumerate(features, start=scales - len(features)):
            factor = self.scale_factors[scale]
            # In multiples of the factor, as all widths of a scale are.
            width = factor * max(1, math.floor(self.reduction * (x.shape[-1] // factor)))
            thinned.append(layers.conv(x, f"{name}.scale{scale}.transition", Convolution(width)))
        return thinned


MSDNet.presets = {
    # The paper's growth, stem and bottlenecks, with fewer layers and with as many.
    "small": MSDNet((4, 2, 2, 2, 2)),
    "large": MSDNet((4,) + (2,) * 10),
}
