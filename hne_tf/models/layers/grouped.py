"""The layer factory whose layers compute all nodes of a block at once.

Activations are `[batch, height, width, nodes, channels]`: branches lie side by side
on channels, and blocks still read a branch's own number of channels off the last
axis. A layer that is given the activation of the nodes' parents computes each
parent's children from it without copying it. Few large operations suit
accelerators, which the many small ones of `TreeEnsemble` leave idle.

A weight holds those of its nodes one after the other along the first axis, as
`models/weights.py` splits it by canonical name.
"""

import dataclasses
from typing import Any

import keras
from keras import KerasTensor, ops

from hne_tf.models.layers.factory import Convolution, subsampled
from hne_tf.models.layers.plain import DATA_FORMAT
from hne_tf.models.layers.shifted import shifted_products
from hne_tf.models.layers.training import TrainingLayers


@keras.saving.register_keras_serializable("hne_tf")
@dataclasses.dataclass(frozen=True)
class GroupedLayers(TrainingLayers):
    """`TrainingLayers` for several nodes of a block; weights and results are the same.

    Attributes:
      nodes: number of nodes that the layers compute; `GroupedEnsemble` sets it.
      split: whether convolutions larger than 1x1 run one parent after the other
        rather than as one grouped convolution, for which CPUs have no fast gradient.
    """

    nodes: int = 1
    split: bool = False

    def add(
        self, inputs: list[KerasTensor], name: str, activation: str | None = None
    ) -> KerasTensor:
        # A parent's activation is broadcast to its children.
        parents = min(x.shape[-2] for x in inputs)
        families = [
            self._reshape(x, (parents, x.shape[-2] // parents, x.shape[-1])) for x in inputs
        ]
        x = super().add(families, name, activation)
        return self._reshape(x, (parents * x.shape[-2], x.shape[-1]))

    def concat(self, inputs: list[KerasTensor], name: str) -> KerasTensor:
        return super().concat([_of_each(x, self.nodes) for x in inputs], name)

    def pool(self, x: KerasTensor, name: str) -> KerasTensor:
        """Global average: `[batch, nodes, channels]`."""
        del name
        return ops.mean(ops.cast(x, "float32"), axis=(1, 2))

    def head(self, x: KerasTensor, name: str, classes: int) -> KerasTensor:
        """Logits `[batch, nodes, classes]`."""
        return GroupedDense(self.nodes, classes, self._penalty(), dtype="float32", name=name)(x)

    def _convolve(self, x: KerasTensor, name: str, convolution: Convolution) -> KerasTensor:
        size, strides = convolution.kernel_size, convolution.strides
        options: dict[str, Any] = {"dtype": self._policy, "name": name}
        if convolution.is_depthwise:
            layer = GroupedDepthwiseConv2D(
                self.nodes, size, strides, self._penalty(), self.shifted, **options
            )
        else:
            layer = GroupedConv2D(
                self.nodes,
                convolution.filters,
                size,
                strides,
                self.split,
                self._penalty(),
                **options,
            )
        return layer(x)

    def _normalise(self, x: KerasTensor, name: str, convolution: Convolution) -> KerasTensor:
        nodes, channels = x.shape[-2:]
        y = super()._normalise(self._reshape(x, (nodes * channels,)), name, convolution)
        return self._reshape(y, (nodes, channels))

    def _reshape(self, x: KerasTensor, branches: tuple[int, ...]) -> KerasTensor:
        """`[batch, height, width, *branches]`."""
        return keras.layers.Reshape((*x.shape[1:3], *branches), dtype=self._policy)(x)


class _GroupedLayer(keras.layers.Layer):
    """A layer with a kernel for each of some nodes."""

    def __init__(
        self, nodes: int, regularizer: keras.regularizers.Regularizer | None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.nodes = nodes
        self.regularizer = regularizer

    def _add_kernel(self, name: str, shape: tuple[int, ...], initializer: Any) -> keras.Variable:
        """Adds the nodes' kernels of one `shape`, one after the other along the first axis."""
        return self.add_weight(
            (self.nodes * shape[0], *shape[1:]),
            initializer,
            regularizer=self.regularizer,
            name=name,
        )

    def _he_normal(self) -> keras.initializers.Initializer:
        """He et al.'s, by the inputs of one node instead of those of all."""
        return keras.initializers.VarianceScaling(2.0 * self.nodes, "fan_in", "truncated_normal")


class GroupedConv2D(_GroupedLayer):
    """Convolutions without bias, of the nodes' own or their parents' activations.

    `[batch, height, width, nodes or parents, channels]` to `[…, nodes, filters]`;
    the children of each parent follow each other, as many for each.
    """

    def __init__(
        self,
        nodes: int,
        filters: int,
        kernel_size: int,
        strides: int,
        split: bool,
        regularizer: keras.regularizers.Regularizer | None,
        **options: Any,
    ) -> None:
        super().__init__(nodes, regularizer, **options)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.split = split

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = (self.kernel_size, self.kernel_size, input_shape[-1], self.filters)
        self.kernel = self._add_kernel("kernel", shape, self._he_normal())

    def call(self, x: Any) -> Any:
        parents, channels = x.shape[-2:]
        size = self.kernel_size
        x, strides = subsampled(x, size, self.strides)
        kernel = ops.reshape(
            self.kernel, (parents, self.nodes // parents, size, size, channels, self.filters)
        )
        if size == 1 and parents > 1:
            y = ops.einsum("bhwpi,pnio->bhwpno", x[:, ::strides, ::strides], kernel[:, :, 0, 0])
        else:
            y = self._convolve(x, ops.transpose(kernel, (0, 2, 3, 4, 1, 5)), strides)
        return ops.reshape(y, (-1, *y.shape[1:3], self.nodes, self.filters))

    def _convolve(self, x: Any, kernel: Any, strides: int) -> Any:
        """Kernel `[parents, height, width, in, children, out]`; a group is a parent."""
        parents, height, width, channels = kernel.shape[:4]
        if self.split or parents == 1:
            kernels = ops.reshape(kernel, (parents, height, width, channels, -1))
            each = [_conv(x[..., p, :], kernels[p], strides) for p in range(parents)]
            return ops.stack(each, axis=-2)
        side_by_side = ops.reshape(x, (-1, *x.shape[1:3], parents * channels))
        kernel = ops.transpose(kernel, (1, 2, 3, 0, 4, 5))
        kernel = ops.reshape(kernel, (height, width, channels, -1))
        return _conv(side_by_side, kernel, strides)


class GroupedDepthwiseConv2D(_GroupedLayer):
    """One depthwise convolution without bias over the channels of all nodes."""

    def __init__(
        self,
        nodes: int,
        kernel_size: int,
        strides: int,
        regularizer: keras.regularizers.Regularizer | None,
        shifted: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(nodes, regularizer, **options)
        self.kernel_size = kernel_size
        self.strides = strides
        self.shifted = shifted

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        # As in `TrainingLayers`: each output sees kernel_size^2 inputs.
        initializer = keras.initializers.RandomNormal(stddev=(2.0 / self.kernel_size**2) ** 0.5)
        shape = (self.kernel_size, self.kernel_size, input_shape[-1], 1)
        self.kernel = self._add_kernel("depthwise_kernel", shape, initializer)

    def call(self, x: Any) -> Any:
        x = _of_each(x, self.nodes)
        size, (nodes, channels) = self.kernel_size, x.shape[-2:]
        kernel = ops.transpose(
            ops.reshape(self.kernel, (nodes, size, size, channels)), (1, 2, 0, 3)
        )
        side_by_side = ops.reshape(x, (-1, *x.shape[1:3], nodes * channels))
        kernel = ops.reshape(kernel, (size, size, nodes * channels, 1))
        if self.shifted:
            y = shifted_products(side_by_side, kernel[..., 0], self.strides)
        else:
            y = ops.depthwise_conv(
                side_by_side, kernel, self.strides, "same", data_format=DATA_FORMAT
            )
        return ops.reshape(y, (-1, *y.shape[1:3], nodes, channels))


class GroupedDense(_GroupedLayer):
    """A linear map with bias for each node: `[batch, nodes or parents, channels]` to units."""

    def __init__(
        self,
        nodes: int,
        units: int,
        regularizer: keras.regularizers.Regularizer | None,
        **options: Any,
    ) -> None:
        super().__init__(nodes, regularizer, **options)
        self.units = units

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.kernel = self._add_kernel("kernel", (input_shape[-1], self.units), self._he_normal())
        self.bias = self.add_weight((self.nodes * self.units,), "zeros", name="bias")

    def call(self, x: Any) -> Any:
        parents, channels = x.shape[-2:]
        kernel = ops.reshape(self.kernel, (parents, self.nodes // parents, channels, self.units))
        y = ops.reshape(ops.einsum("bpi,pnio->bpno", x, kernel), (-1, self.nodes, self.units))
        return y + ops.reshape(self.bias, (self.nodes, self.units))


def _conv(x: Any, kernel: Any, strides: int) -> Any:
    return ops.conv(x, kernel, strides, "same", data_format=DATA_FORMAT)


def _of_each(x: Any, nodes: int) -> Any:
    """The activation that each node sees: copies of its parent's, unless it is its own."""
    return x if x.shape[-2] == nodes else ops.repeat(x, nodes // x.shape[-2], axis=-2)
