"""What the models of keras.applications expect of their images."""

import inspect
from typing import Any

import keras
import numpy as np

from hne_tf.errors import InputError
from hne_tf.models.functional import graph, sources

_FAMILY = "keras.applications."
_CHANNELS = 3


def is_known(name: str) -> bool:
    """Whether a builder's images are known to be preprocessed in some way."""
    return name.startswith(_FAMILY)


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """How the images of a model of `keras.applications` are normalised.

    Measured with the family's `preprocess_input`, which maps each channel linearly.

    Args:
      name: such as `keras.applications.MobileNetV2`.

    Returns:
      Mean and standard deviation per channel of RGB images, in units of 0 to 255, and
      whether the model reads the channels in reverse order.

    Raises:
      InputError: for a builder whose preprocessing is not known.
    """
    make = sources.function(name)
    preprocess = getattr(inspect.getmodule(make), "preprocess_input", None)
    if not is_known(name) or preprocess is None:
        raise InputError(f"the preprocessing of {name} must be known, got no preprocess_input")
    zero = np.zeros((1, 1, 1, _CHANNELS), np.float32)
    unit = 255 * np.eye(_CHANNELS, dtype=np.float32).reshape((_CHANNELS, 1, 1, _CHANNELS))

    def read(pixels: np.ndarray) -> np.ndarray:
        # It may work in place.
        pixels = preprocess(pixels.copy(), data_format="channels_last")
        return np.asarray(pixels, np.float64).reshape((-1, _CHANNELS))

    offset = read(zero)[0]
    slopes = (read(unit) - offset) / 255
    is_reversed = bool(slopes[0, 0] == 0)
    if is_reversed:
        # Of the channels as they are given.
        slopes, offset = slopes[:, ::-1], offset[::-1]
    scale = np.diag(slopes)
    return tuple(-offset / scale), tuple(1 / scale), is_reversed


def in_order_of_rgb(model: keras.Model) -> keras.Model:
    """A model of BGR images as one of RGB images, with weights of its own."""
    model = graph.functional(model)
    images = keras.Input(model.inputs[0].shape[1:], dtype=model.inputs[0].dtype)
    reverse = keras.ops.flip(images, axis=-1)

    def call(operation: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        args = keras.tree.map_structure(lambda x: reverse if x is images else x, args)
        return operation(*args, **kwargs)

    turned = keras.Model(images, graph.clone(model, images, call_function=call), name=model.name)
    turned.set_weights(model.get_weights())
    return turned
