"""The verbs that blocks are written in. Imports no Keras.

What a convolution becomes is decided by a factory, not in the blocks. A convolution
comes with its normalisation and activation as one unit, named by its place in the
block, e.g. `"unit0.conv1"`. Dots in layer names become slashes in canonical weight
names (`models/weights.py`), so every factory's weights load into every other's.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from keras import KerasTensor


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution with its normalisation and activation, as a block asks for it.

    Padding keeps height and width, divided by the stride and rounded up.

    Attributes:
      filters: output channels; None for a depthwise convolution, which gives as many
        as it gets.
      kernel_size: height and width of the kernel.
      strides: pixels from one output to the next, in both directions.
      activation: Keras's name of the activation, None for none.
      zero_gamma: whether the normalisation's scale starts at 0, so that a residual
        branch adds nothing at first.

    Example:
      >>> x = layers.conv(x, "conv1", Convolution(32))
      >>> x = layers.conv(x, "conv2", Convolution.depthwise(strides=2))
    """

    filters: int | None
    kernel_size: int = 1
    strides: int = 1
    activation: str | None = "relu"
    zero_gamma: bool = False

    @classmethod
    def depthwise(
        cls, kernel_size: int = 3, strides: int = 1, activation: str | None = "relu"
    ) -> Convolution:
        """A convolution of each channel by itself."""
        return cls(None, kernel_size, strides, activation)

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is convolved by itself."""
        return self.filters is None


# Floats in a vector of AVX2.
LEAST_CHANNELS = 8


def subsampled(x: Any, kernel_size: int, strides: int) -> tuple[Any, int]:
    """What a convolution without padding reads of its input, and the strides that are left.

    A strided 1x1 convolution sees every n-th pixel. With fewer than `LEAST_CHANNELS`
    input channels these are taken out first: on a CPU with AVX2, TensorFlow's oneDNN
    kernel for the gradient of its weights otherwise writes past its buffer, which gives
    wrong gradients or ends the process (TensorFlow 2.21).

    Args:
      x: `[batch, height, width, ..., channels]`.
      kernel_size: height and width of the kernel.
      strides: in height and width.
    """
    if kernel_size == 1 and strides > 1 and x.shape[-1] < LEAST_CHANNELS:
        return x[:, ::strides, ::strides], 1
    return x, strides


class LayerFactory(Protocol):
    """Layers that a block is written in; activations are `[batch, height, width, channels]`."""

    def entry(self, x: KerasTensor, name: str) -> KerasTensor:
        """What comes into a node: its parent's activation, or the normalised images."""

    def branch(self, x: KerasTensor, name: str, share: float) -> KerasTensor:
        """A parent's activation as a child reads it that has a share of the parent's leaves."""

    def conv(self, x: KerasTensor, name: str, convolution: Convolution) -> KerasTensor:
        """Convolution, normalisation and activation."""

    def add(
        self, inputs: list[KerasTensor], name: str, activation: str | None = None
    ) -> KerasTensor:
        """Sum of activations of equal shape, then the activation."""

    def concat(self, inputs: list[KerasTensor], name: str) -> KerasTensor:
        """Activations side by side on channels."""

    def pool(self, x: KerasTensor, name: str) -> KerasTensor:
        """Global average: `[batch, height, width, channels]` to `[batch, channels]`."""

    def head(self, x: KerasTensor, name: str, classes: int) -> KerasTensor:
        """Linear classifier: `[batch, channels]` to logits `[batch, classes]`."""
