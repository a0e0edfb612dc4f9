"""The layer factory of 8-bit integer inference, simulated in floating point.

Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018, with one scale per output channel
of a kernel (Krishnamoorthi, arXiv 1806.08342, 2018). Needs TensorFlow, whose
fake quantisation the TFLite converter turns into integer operations.
"""

import dataclasses
from typing import Any

import keras
import tensorflow as tf
from keras import KerasTensor, ops

from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.factory import Convolution

BITS = 8
# A kernel's channel that is smaller than this part of the largest one shares
# that scale: the integer bias is in units of the kernel's scale times the
# input's, and overflows for the nearly empty channels that folding can leave.
_LEAST_CHANNEL = 1e-3
# A unit that is always 0 still needs a scale.
_LEAST_WIDTH = 1e-6


@keras.saving.register_keras_serializable("hne_tf")
@dataclasses.dataclass(frozen=True)
class QuantizedLayers(DeployLayers):
    """The deploy factory's layers with 8-bit kernels and activations.

    Kernels of convolutions are rounded per output channel, symmetrically about
    0. What enters a node and what leaves a unit or the pooling is rounded to 256
    levels of a range that is kept with the weights, `<unit>/range/min` and `max`;
    all other weights are the deploy factory's. The classifier and what comes
    after it stay in floating point.

    Attributes:
      observe: computes in floating point instead, and each call widens the
        ranges to hold what they see: for calibration.
    """

    observe: bool = False

    def entry(self, x: KerasTensor, name: str) -> KerasTensor:
        return self._ranged(x, name)

    def conv(self, x: KerasTensor, name: str, convolution: Convolution) -> KerasTensor:
        return self._ranged(super().conv(x, name, convolution), name)

    def add(
        self, inputs: list[KerasTensor], name: str, activation: str | None = None
    ) -> KerasTensor:
        return self._ranged(super().add(inputs, name, activation), name)

    def concat(self, inputs: list[KerasTensor], name: str) -> KerasTensor:
        # Integers side by side need one scale, so that of the whole is taken.
        return self._ranged(super().concat(inputs, name), name)

    def pool(self, x: KerasTensor, name: str) -> KerasTensor:
        # Without a range the converter would give the averages, which vary
        # less, the range of what is averaged.
        return self._ranged(super().pool(x, name), name)

    @property
    def _layers(self) -> tuple[type[keras.layers.Conv2D], type[keras.layers.DepthwiseConv2D]]:
        return super()._layers if self.observe else (QuantizedConv2D, QuantizedDepthwiseConv2D)

    def _ranged(self, x: KerasTensor, name: str) -> KerasTensor:
        layer = ObservedRange if self.observe else QuantizedRange
        return layer(dtype=self._policy, name=f"{name}.range")(x)


class _Range(keras.layers.Layer):
    """Holds `min` and `max`, the range of an activation of any shape."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.min = self.add_weight((), "zeros", name="min", trainable=False)
        self.max = self.add_weight((), "zeros", name="max", trainable=False)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape


class QuantizedRange(_Range):
    """Rounds to 256 levels from `min` to `max`, of which 0 is one; clips what lies outside."""

    def call(self, x: Any) -> Any:
        return quantize(x, ops.convert_to_tensor(self.min), ops.convert_to_tensor(self.max))


class ObservedRange(_Range):
    """Passes its input on and widens its range to hold it; the range starts as 0 to 0."""

    def call(self, x: Any) -> Any:
        self.min.assign(ops.minimum(self.min, ops.min(x)))
        self.max.assign(ops.maximum(self.max, ops.max(x)))
        return x


class QuantizedConv2D(keras.layers.Conv2D):
    """Convolution whose kernel `[height, width, in, out]` is rounded per output channel."""

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        return super().convolution_op(inputs, quantize_kernel(ops.convert_to_tensor(kernel)))


class QuantizedDepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Depthwise convolution whose kernel `[height, width, channels, 1]` is rounded per channel."""

    def call(self, inputs: Any) -> Any:
        kernel = quantize_depthwise_kernel(ops.convert_to_tensor(self.kernel))
        y = ops.depthwise_conv(
            inputs, kernel, self.strides, self.padding, data_format=self.data_format
        )
        return self.activation(y + self.bias)


def quantize(x: tf.Tensor, minimum: tf.Tensor, maximum: tf.Tensor) -> tf.Tensor:
    """Rounds `x` to the 256 levels of a range, which is widened and nudged to have 0 as a level."""
    minimum, maximum = tf.minimum(minimum, 0.0), tf.maximum(maximum, 0.0)
    maximum = tf.maximum(maximum, minimum + _LEAST_WIDTH)
    return tf.quantization.fake_quant_with_min_max_vars(x, minimum, maximum, num_bits=BITS)


def quantize_kernel(kernel: tf.Tensor) -> tf.Tensor:
    """Rounds `[height, width, in, out]` to multiples, -127 to 127, of a step per output channel."""
    # The step follows the kernel; gradients pass the rounding as if it were not there.
    largest = tf.reduce_max(tf.abs(tf.stop_gradient(kernel)), axis=(0, 1, 2))
    largest = tf.maximum(largest, _LEAST_CHANNEL * tf.reduce_max(largest))
    return tf.quantization.fake_quant_with_min_max_vars_per_channel(
        kernel, -largest, largest, num_bits=BITS, narrow_range=True
    )


def quantize_depthwise_kernel(kernel: tf.Tensor) -> tf.Tensor:
    """Rounds `[height, width, channels, 1]` as `quantize_kernel` does, with a step per channel."""
    channels_last = tf.transpose(kernel, (0, 1, 3, 2))
    return tf.transpose(quantize_kernel(channels_last), (0, 1, 3, 2))
