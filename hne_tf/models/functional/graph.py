"""The graph of a functional Keras model, call by call."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras

from hne_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One call of a layer or operation; a shared layer has several.

    Attributes:
      operation: what is called.
      inputs: tensors that it reads.
      outputs: tensors that it gives.
    """

    operation: keras.Operation
    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]


def calls(model: keras.Model) -> list[LayerCall]:
    """The calls of a functional model in an order in which they can be computed."""
    # Keras has no public view of them.
    by_depth = model._nodes_by_depth
    return [
        LayerCall(node.operation, tuple(node.input_tensors), tuple(node.outputs))
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
        if not node.is_input
    ]


def producer(model: keras.Model, tensor: keras.KerasTensor) -> LayerCall | None:
    """The call that gives a tensor, None for the model's input."""
    return next((call for call in calls(model) if any(x is tensor for x in call.outputs)), None)


def has_weights(operation: keras.Operation) -> bool:
    """Whether an operation is a layer with weights."""
    return bool(getattr(operation, "weights", ()))


def functional(model: Any) -> keras.Model:
    """A functional model of one input and one output with the layers of `model`.

    Args:
      model: functional, or a built `Sequential`.

    Raises:
      InputError: for a model without a graph, or with several inputs or outputs.
    """
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise InputError(
                "a Sequential model must be built: begin it with keras.Input(shape), "
                f"got {model.name!r} without an input shape"
            )
    elif not isinstance(model, keras.Model) or not isinstance(model, keras.Function):
        raise InputError(
            "the model must be a functional Keras model, keras.Model(inputs, outputs), "
            f"got {type(model).__name__}, whose layers Keras cannot tell apart"
        )
    for what, tensors in (("input", model.inputs), ("output", model.outputs)):
        if len(tensors) != 1:
            raise InputError(f"the model must have one {what}, got {len(tensors)}")
    return keras.Model(model.inputs[0], model.outputs[0], name=model.name)


def clone(
    model: keras.Model,
    x: keras.KerasTensor,
    clone_function: Callable[[keras.Operation], keras.Operation] | None = None,
    call_function: Callable[..., Any] | None = None,
) -> keras.KerasTensor:
    """What a functional model computes of `x`, by new layers with weights of their own.

    The functions are those of `keras.models.clone_model`. They also get what is inside
    functional models in the model.
    """

    def clone_layer(layer: keras.Operation) -> keras.Operation:
        # A subclass may compute something else than its graph.
        if type(layer) is type(model):
            inner = keras.models.clone_model(layer, None, clone_layer, call_function)
            if not layer.trainable:
                inner.trainable = False
            return inner
        if type(layer) is keras.Sequential:
            return keras.models.clone_model(layer, None, clone_layer)
        if clone_function is not None:
            return clone_function(layer)
        return type(layer).from_config(layer.get_config())

    return keras.models.clone_model(
        model, input_tensors=x, clone_function=clone_layer, call_function=call_function
    ).output


def is_sum(operation: keras.Operation) -> bool:
    """Whether an operation adds tensors: a layer, `keras.ops.add` or `+`."""
    return type(operation).__name__ == "Add"


def for_images(model: keras.Model, shape: Sequence[int]) -> keras.KerasTensor:
    """An input of `shape` for a model that takes such images.

    Raises:
      InputError: if the model takes images of another shape.
    """
    given = model.inputs[0]
    expected = given.shape[1:]
    fits = len(expected) == len(shape) and all(
        size in (None, side) for size, side in zip(expected, shape, strict=True)
    )
    if not fits:
        raise InputError(f"images must have the model's shape {expected}, got {tuple(shape)}")
    return keras.Input(shape, dtype=given.dtype, name=given.name)
