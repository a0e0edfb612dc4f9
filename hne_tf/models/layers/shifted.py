"""Depthwise convolutions as sums of shifted products.

XLA fuses them, and their gradients, into a few kernels. Its own depthwise convolutions have
slow gradients: on a CPU they take most of a step.
"""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("hne_tf")
class ShiftedDepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with padding and without bias, the same numbers."""

    def call(self, inputs: Any) -> Any:
        return shifted_products(inputs, self.kernel[..., 0], self.strides[0])


def shifted_products(x: Any, kernel: Any, strides: int) -> Any:
    """Depthwise convolution with padding of `[batch, height, width, channels]`."""
    size, spatial = kernel.shape[0], x.shape[1:3]
    outputs = [-(-side // strides) for side in spatial]
    missing = [
        max((out - 1) * strides + size - side, 0)
        for out, side in zip(outputs, spatial, strict=True)
    ]
    margins = [(each // 2, each - each // 2) for each in missing]
    # Summed in float32, as a library's kernel does.
    padded = ops.cast(ops.pad(x, [(0, 0), *margins, (0, 0)]), "float32")
    kernel = ops.cast(kernel, "float32")
    rows, columns = ((out - 1) * strides + 1 for out in outputs)
    products = [
        padded[:, i : i + rows : strides, j : j + columns : strides] * kernel[i, j]
        for i in range(size)
        for j in range(size)
    ]
    return ops.cast(sum(products[1:], products[0]), x.dtype)
