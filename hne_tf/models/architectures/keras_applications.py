"""Trained weights of `keras.applications` as a start for a tree."""

import keras

from hne_tf.errors import InputError
from hne_tf.models import weights
from hne_tf.models.architectures.mobilenet_v2 import MobileNetV2
from hne_tf.models.ensemble import TreeEnsemble

# keras.applications.mobilenet_v2.preprocess_input maps 0 … 255 to -1 … 1.
MEAN = STD = 127.5


def load_keras_applications(model: TreeEnsemble, keras_model: keras.Model) -> None:
    """Sets every node of a MobileNetV2 tree to the weights of `keras_model`, moving averages too.

    Nodes of one block are then the same. With `include_top=False` the leaves
    keep classifiers of their own, from which training drives them apart; with
    copied classifiers they would stay the same for ever, unless the tree is a
    single network.

    Args:
      model: a `MobileNetV2` built by `TrainingLayers`.
      keras_model: a `keras.applications.MobileNetV2`; its logits are the
        tree's if it has a classifier.

    Raises:
      InputError: if the models differ in layers, shapes or the normalisation of
        images; nothing is set then.

    Example:
      >>> spec = dataclasses.replace(data.spec, mean=(127.5,) * 3, std=(127.5,) * 3)
      >>> model = TreeEnsemble(MobileNetV2(), Tree((1, 2, 2, 2)), spec)
      >>> load_keras_applications(model, keras.applications.MobileNetV2(include_top=False))
    """
    if not isinstance(model.architecture, MobileNetV2):
        raise InputError(f"the tree must be of MobileNetV2, got {model.architecture}")
    images = model.images
    if {*images.mean, *images.std} != {MEAN}:
        raise InputError(
            f"images must be normalised with mean and std {MEAN}, "
            f"got mean {images.mean} and std {images.std}"
        )
    sources = {layer.name: layer for layer in keras_model.layers}
    names = _layer_names(model.architecture)
    values = {}
    for row in model.node_models:
        for node in row:
            for layer in node.layers:
                own = layer if layer.name == "head" else None
                source = sources.get(names.get(layer.name), own)
                theirs = source.weights if source else ()
                for variable, weight in zip(layer.weights, theirs, strict=False):
                    name = weights.canonical_name(node.name, layer, variable)
                    values[name] = keras.ops.convert_to_numpy(weight)
    weights.load(model, values)


def _layer_names(architecture: MobileNetV2) -> dict[str, str]:
    """Names in `keras.applications` of our layers with weights."""
    names = {"head": "predictions"}
    norms = {"stem": ("Conv1", "bn_Conv1"), "last": ("Conv_1", "Conv_1_bn")}
    units = [
        f"stage{stage}.unit{unit}"
        for stage, count in enumerate(architecture.units)
        for unit in range(count)
    ]
    for index, unit in enumerate(units):
        theirs = f"block_{index}" if index else "expanded_conv"
        for part in ("expand", "depthwise", "project"):
            norms[f"{unit}.{part}"] = f"{theirs}_{part}", f"{theirs}_{part}_BN"
    for ours, (convolution, norm) in norms.items():
        names[ours], names[f"{ours}.norm"] = convolution, norm
    return names
