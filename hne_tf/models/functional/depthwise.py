"""Convolutions with a group for each channel, as the depthwise ones that they are.

Keras computes grouped convolutions on CPUs by XLA, which TF Serving and TFLite do not do.
"""

import keras
import numpy as np

from hne_tf.models.functional import graph


def replaced(model: keras.Model) -> keras.Model:
    """A functional model with a `DepthwiseConv2D` in the place of each such convolution.

    Layers keep their names, and the new ones have fresh weights, see `kernel`.
    """
    # Those of nested models as well, of which Keras has no public view.
    if not any(map(_is_depthwise, model._flatten_layers())):
        return model

    def clone_function(layer: keras.Operation) -> keras.Operation:
        if _is_depthwise(layer):
            return _depthwise(layer)
        return type(layer).from_config(layer.get_config())

    (x,) = model.inputs
    inputs = keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name)
    outputs = graph.clone(model, inputs, clone_function)
    return keras.Model(inputs, outputs, name=model.name)


def kernel(weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A weight of a model as one of the model that `replaced` made of it.

    Args:
      weight: of any layer.
      shape: that the new weight has: `[height, width, channels, multiplier]` where `weight`
        is the kernel `[height, width, 1, channels * multiplier]` of a grouped convolution.
    """
    grouped = len(shape) == 4 and (*shape[:2], 1, shape[2] * shape[3])
    return weight.reshape(shape) if weight.shape == grouped else weight


def _is_depthwise(layer: keras.Operation) -> bool:
    return (
        type(layer) is keras.layers.Conv2D
        and layer.groups > 1
        and layer.kernel.shape[2] == 1
        # What TensorFlow has a kernel for.
        and len(set(layer.strides)) == 1
    )


def _depthwise(layer: keras.layers.Conv2D) -> keras.layers.DepthwiseConv2D:
    config = layer.get_config()
    multiplier = config.pop("filters") // config.pop("groups")
    for part in ("initializer", "regularizer", "constraint"):
        config[f"depthwise_{part}"] = config.pop(f"kernel_{part}")
    return keras.layers.DepthwiseConv2D.from_config({**config, "depth_multiplier": multiplier})
