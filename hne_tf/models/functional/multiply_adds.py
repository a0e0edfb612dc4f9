"""Multiply-adds of any layer of a functional Keras model.

Counted are products with weights of two or more dimensions, and those of activations in
attention; not biases, norms, scales, pooling and activation functions. A layer of the
user's own that multiplies matrices registers a function:

    @multiply_adds.register(MyLayer)
    def _(layer, inputs, output):
        return ...
"""

import functools
import math
from collections.abc import Iterable, Sequence

import keras
from keras import layers

from hne_tf.errors import InputError
from hne_tf.models.functional import graph

Shape = tuple[int | None, ...]


def of_model(model: keras.Model) -> int:
    """Multiply-adds of a functional model for one example.

    Raises:
      InputError: for a layer that cannot be counted.
    """
    return sum(map(of_call, graph.calls(model)))


def of_call(call: graph.LayerCall) -> int:
    """Multiply-adds of a call for one example.

    Raises:
      InputError: for a layer that cannot be counted.
    """
    inputs = tuple(x.shape for x in call.inputs)
    return multiply_adds(call.operation, inputs, call.outputs[0].shape)


@functools.singledispatch
def multiply_adds(operation: keras.Operation, inputs: Sequence[Shape], output: Shape) -> int:
    """Multiply-adds of one call of a layer or operation, for one example.

    Args:
      operation: of a class of its own among those registered; a class without weights
        of two or more dimensions counts 0.
      inputs: shape of each input, the batch first.
      output: shape of the first output.

    Raises:
      InputError: for a kind of layer that is not registered.
    """
    name = type(operation).__name__
    if not isinstance(operation, keras.Layer):
        if name in _OPERATIONS:
            return _OPERATIONS[name](inputs, output)
        if name in _UNCOUNTED_OPERATIONS:
            raise _unknown(operation)
        return 0
    if any(len(weight.shape) > 1 for weight in operation.weights):
        raise _unknown(operation)
    return 0


def _unknown(operation: keras.Operation) -> InputError:
    return InputError(
        "multiply-adds must be registered for a layer that is not Keras's "
        f"(hne_tf.models.functional.multiply_adds), got {type(operation).__name__} "
        f"{operation.name!r}"
    )


def _size(shape: Iterable[int | None]) -> int:
    """The product of dimensions, which must be known."""
    sizes = tuple(shape)
    if None in sizes:
        raise InputError(f"multiply-adds are counted for known shapes, got {sizes}")
    return math.prod(sizes)


def _positions(layer: keras.Layer, shape: Shape) -> int:
    """Pixels of an activation."""
    return _size(shape[2:] if layer.data_format == "channels_first" else shape[1:-1])


# What has weights of two or more dimensions and multiplies each number once at most.
@multiply_adds.register(layers.Embedding)
@multiply_adds.register(layers.PReLU)
@multiply_adds.register(layers.BatchNormalization)
@multiply_adds.register(layers.LayerNormalization)
@multiply_adds.register(layers.RMSNormalization)
@multiply_adds.register(layers.GroupNormalization)
@multiply_adds.register(layers.Normalization)
def _elementwise(layer: keras.Layer, inputs: Sequence[Shape], output: Shape) -> int:
    del layer, inputs, output
    return 0


@multiply_adds.register(layers.Dense)
def _dense(layer: layers.Dense, inputs: Sequence[Shape], output: Shape) -> int:
    del inputs
    return _size(layer.kernel.shape) * _size(output[1:-1])


@multiply_adds.register(layers.EinsumDense)
def _einsum_dense(layer: layers.EinsumDense, inputs: Sequence[Shape], output: Shape) -> int:
    del output
    read, _, _ = layer.equation.partition("->")
    x, kernel = read.split(",")
    if "..." in x:
        # Dimensions that the kernel does not see.
        first = x.replace("...", "")
        count = len(inputs[0]) - len(first)
        x = x.replace("...", "0123456789"[:count])
    return _einsum((x, kernel), (inputs[0], tuple(layer.kernel.shape)))


def _einsum(indices: Sequence[str], shapes: Sequence[Shape]) -> int:
    """Products of an Einstein sum; the batch, which has no size, counts once."""
    sizes = {
        index: size
        for names, shape in zip(indices, shapes, strict=True)
        for index, size in zip(names, shape, strict=True)
    }
    return _size(1 if index == indices[0][0] else size for index, size in sizes.items())


@multiply_adds.register(layers.Conv1D)
@multiply_adds.register(layers.Conv2D)
@multiply_adds.register(layers.Conv3D)
@multiply_adds.register(layers.DepthwiseConv1D)
@multiply_adds.register(layers.DepthwiseConv2D)
def _convolution(layer: layers.Conv2D, inputs: Sequence[Shape], output: Shape) -> int:
    del inputs
    return _size(layer.kernel.shape) * _positions(layer, output)


@multiply_adds.register(layers.SeparableConv1D)
@multiply_adds.register(layers.SeparableConv2D)
def _separable(layer: layers.SeparableConv2D, inputs: Sequence[Shape], output: Shape) -> int:
    del inputs
    kernels = _size(layer.depthwise_kernel.shape) + _size(layer.pointwise_kernel.shape)
    return kernels * _positions(layer, output)


# They spread each input over a kernel.
@multiply_adds.register(layers.Conv1DTranspose)
@multiply_adds.register(layers.Conv2DTranspose)
@multiply_adds.register(layers.Conv3DTranspose)
def _transposed(layer: layers.Conv2DTranspose, inputs: Sequence[Shape], output: Shape) -> int:
    del output
    return _size(layer.kernel.shape) * _positions(layer, inputs[0])


@multiply_adds.register(layers.MultiHeadAttention)
@multiply_adds.register(layers.GroupQueryAttention)
def _attention_with_heads(layer: keras.Layer, inputs: Sequence[Shape], output: Shape) -> int:
    config = layer.get_config()
    grouped = isinstance(layer, layers.GroupQueryAttention)
    heads = config["num_query_heads"] if grouped else config["num_heads"]
    key_heads = config["num_key_value_heads"] if grouped else heads
    width = config["head_dim"] if grouped else config["key_dim"]
    value_width = width if grouped else config["value_dim"] or width
    query, value = inputs[0], inputs[min(1, len(inputs) - 1)]
    key = inputs[2] if len(inputs) > 2 and len(inputs[2]) == len(value) else value
    queries, keys = _size(query[1:-1]), _size(key[1:-1])
    projections = (
        queries * query[-1] * heads * width
        + keys * (key[-1] * width + value[-1] * value_width) * key_heads
        + queries * heads * value_width * output[-1]
    )
    return projections + queries * keys * heads * (width + value_width)


@multiply_adds.register(layers.Attention)
def _attention(layer: layers.Attention, inputs: Sequence[Shape], output: Shape) -> int:
    query, value = inputs[0], inputs[min(1, len(inputs) - 1)]
    return query[1] * value[1] * (query[-1] + output[-1])


@multiply_adds.register(layers.Dot)
def _dot(layer: layers.Dot, inputs: Sequence[Shape], output: Shape) -> int:
    axis = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    return _size(output[1:]) * inputs[0][axis]


@multiply_adds.register(layers.SimpleRNN)
@multiply_adds.register(layers.LSTM)
@multiply_adds.register(layers.GRU)
def _recurrent(layer: keras.Layer, inputs: Sequence[Shape], output: Shape) -> int:
    del output
    kernels = sum(_size(weight.shape) for weight in layer.weights if "kernel" in weight.name)
    return kernels * _size(inputs[0][1:2])


@multiply_adds.register(layers.Bidirectional)
def _both_ways(layer: layers.Bidirectional, inputs: Sequence[Shape], output: Shape) -> int:
    ways = (layer.forward_layer, layer.backward_layer)
    return sum(multiply_adds(way, inputs, output) for way in ways)


@multiply_adds.register(layers.TimeDistributed)
def _for_each_time(layer: layers.TimeDistributed, inputs: Sequence[Shape], output: Shape) -> int:
    one = multiply_adds(
        layer.layer, [(shape[0], *shape[2:]) for shape in inputs], (output[0], *output[2:])
    )
    return one * _size(inputs[0][1:2])


@multiply_adds.register(layers.SpectralNormalization)
def _normalised(layer: layers.SpectralNormalization, inputs: Sequence[Shape], output: Shape) -> int:
    return multiply_adds(layer.layer, inputs, output)


@multiply_adds.register(keras.Model)
def _nested(model: keras.Model, inputs: Sequence[Shape], output: Shape) -> int:
    if not isinstance(model, (keras.Function, keras.Sequential)):
        raise _unknown(model)
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs, model.outputs)
    if any(x.shape != shape for x, shape in zip(model.inputs, inputs, strict=True)):
        given = [keras.Input(shape[1:]) for shape in inputs]
        model = keras.models.clone_model(
            keras.Model(model.inputs, model.outputs), input_tensors=given
        )
    return of_model(model)


def _matmul(inputs: Sequence[Shape], output: Shape) -> int:
    return _size(output[1:]) * _size(inputs[0][-1:])


# By the names of their classes, which Keras does not export.
_OPERATIONS = {"Matmul": _matmul}
_UNCOUNTED_OPERATIONS = frozenset(
    {
        *("Conv", "DepthwiseConv", "SeparableConv", "ConvTranspose", "DotProductAttention"),
        *("Einsum", "Dot", "Tensordot", "Inner", "Outer", "Vdot"),
    }
)
