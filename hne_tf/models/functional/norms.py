"""Batch norms of a functional Keras model, folded into the layers before them."""

import collections
import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from hne_tf.models.functional import graph

# Layers that take in a norm, and the weight that has an axis of output channels.
_KERNELS = {
    layers.Conv2D: "kernel",
    layers.DepthwiseConv2D: "kernel",
    layers.SeparableConv2D: "pointwise_kernel",
    layers.Dense: "kernel",
}


def pairs(model: keras.Model) -> dict[str, str]:
    """The norms of a functional model that can be folded: by the layer before, the norm's name.

    Each is all that reads what a convolution or dense layer gives, which applies no activation
    and is called once. Nested models keep their norms.
    """
    calls = graph.calls(model)
    called = collections.Counter(id(call.operation) for call in calls)
    readers = collections.defaultdict(list)
    for call in calls:
        for x in call.inputs:
            readers[id(x)].append(call.operation)
    ends = {id(x) for x in model.outputs}
    found = {}
    for call in calls:
        layer, output = call.operation, call.outputs[0]
        if len(readers[id(output)]) != 1 or id(output) in ends:
            continue
        (reader,) = readers[id(output)]
        once = called[id(layer)] == called[id(reader)] == 1
        if once and _takes_in(layer) and _is_taken_in(reader, output):
            found[layer.name] = reader.name
    return found


def _takes_in(operation: keras.Operation) -> bool:
    return (
        type(operation) in _KERNELS
        and operation.activation is keras.activations.linear
        and getattr(operation, "data_format", "channels_last") == "channels_last"
        and _is_float32(operation)
    )


def _is_taken_in(operation: keras.Operation, x: keras.KerasTensor) -> bool:
    return (
        type(operation) is layers.BatchNormalization
        and operation.axis in (-1, len(x.shape) - 1)
        and _is_float32(operation)
    )


def _is_float32(layer: keras.Layer) -> bool:
    # A folded kernel is rounded at other places.
    return layer.compute_dtype == layer.variable_dtype == "float32"


def folded(model: keras.Model, norms: Mapping[str, str]) -> keras.Model:
    """A model with fresh weights that lacks some norms, and has biases in the layers before.

    Args:
      model: functional.
      norms: of those that `pairs` finds in the model or in parts of it.
    """
    taken_in = {id(model.get_layer(name)) for name in norms.values()}
    with_bias = {id(model.get_layer(name)) for name in norms}
    left_out = []

    def clone_function(layer: keras.Operation) -> keras.Operation:
        config = layer.get_config()
        if id(layer) in with_bias:
            config["use_bias"] = True
        clone = type(layer).from_config(config)
        if id(layer) in taken_in:
            left_out.append(clone)
        return clone

    def call_function(operation: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        if any(operation is each for each in left_out):
            return args[0]
        return operation(*args, **kwargs)

    (x,) = model.inputs
    inputs = keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name)
    outputs = graph.clone(model, inputs, clone_function, call_function)
    return keras.Model(inputs, outputs, name=model.name)


def load(target: keras.Model, source: keras.Model, norms: Mapping[str, str]) -> None:
    """Gives a folded model the weights of the model that it comes from.

    Args:
      target: has the layers of `folded`.
      source: has the layers of the model that was folded.
      norms: as for `folded`; those of other parts of the model are left alone.
    """
    for layer in filter(graph.has_weights, target.layers):
        given = source.get_layer(layer.name)
        if layer.name in norms:
            _load_folded(layer, given, source.get_layer(norms[layer.name]))
        else:
            layer.set_weights(given.get_weights())


def _load_folded(target: keras.Layer, layer: keras.Layer, norm: layers.BatchNormalization) -> None:
    """One layer for `scale * layer(x) + shift`, where the two are the norm's."""
    values = {weight.name: _numbers(weight) for weight in layer.weights}
    mean, variance = _numbers(norm.moving_mean), _numbers(norm.moving_variance)
    gamma = 1.0 if norm.gamma is None else _numbers(norm.gamma)
    beta = 0.0 if norm.beta is None else _numbers(norm.beta)
    scale = gamma / np.sqrt(variance + norm.epsilon)
    kernel = values[_KERNELS[type(layer)]]
    # A depthwise kernel is [height, width, channels, multiplier].
    channels = kernel.shape[2:] if type(layer) is layers.DepthwiseConv2D else kernel.shape[-1:]
    values[_KERNELS[type(layer)]] = kernel * scale.reshape(channels)
    values["bias"] = beta + scale * (values.get("bias", 0.0) - mean)
    for weight in target.weights:
        weight.assign(values[weight.name])


def _numbers(weight: keras.Variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(weight).astype(np.float64)


def saved_parameters(model: keras.Model, norms: Mapping[str, str]) -> int:
    """Numbers that a device need not hold when norms are folded.

    Args:
      model: functional.
      norms: as for `folded`; those of other parts of the model count nothing.
    """
    by_name = {layer.name: layer for layer in model.layers}
    saved = 0
    for name, norm in norms.items():
        if name in by_name and norm in by_name:
            numbers = [math.prod(weight.shape) for weight in by_name[norm].weights]
            # Each weight of a norm has as many as the bias.
            saved += sum(numbers) - (0 if by_name[name].use_bias else numbers[0])
    return saved
