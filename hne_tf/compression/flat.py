"""A tree as one flat `tf_keras` graph, the only form that TFMOT takes.

The TensorFlow Model Optimization Toolkit knows `tf_keras` (Keras 2) alone. The
architectures build this form too: it is one more layer factory.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from hne_tf.errors import extra
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.factory import Convolution
from hne_tf.models.layers.plain import DATA_FORMAT
from hne_tf.models.nodes import node_output

with extra("compress"):
    import tf_keras

# Kinds of weights by their names in `tf_keras` and in `treatments`; whatever
# else TFMOT adds, masks and counters, is no weight of the model.
RANGE_MIN, RANGE_MAX = "range_min", "range_max"
_KINDS = {
    "kernel": "kernel",
    "depthwise_kernel": "depthwise_kernel",
    "bias": "bias",
    RANGE_MIN: "range/min",
    RANGE_MAX: "range/max",
}


@dataclasses.dataclass(frozen=True)
class FlatLayers:
    """The deploy factory in `tf_keras`, for one node of the tree.

    A unit's output comes from the layer with the unit's name, `block0.node0.unit0.add`.

    Attributes:
      node: name of the node, `block0.node0`, which begins the layers' names.
      weight_decay: of kernels, as in `TrainingLayers`.
    """

    node: str
    weight_decay: float = 0.0

    def entry(self, x: tf.Tensor, name: str) -> tf.Tensor:
        return tf_keras.layers.Activation("linear", name=self._named(name))(x)

    def branch(self, x: tf.Tensor, name: str, share: float) -> tf.Tensor:
        del name, share
        return x

    def conv(self, x: tf.Tensor, name: str, convolution: Convolution) -> tf.Tensor:
        options = {
            "strides": convolution.strides,
            "padding": "same",
            "data_format": DATA_FORMAT,
            "activation": convolution.activation,
            "name": self._named(name),
        }
        if convolution.is_depthwise:
            layer = tf_keras.layers.DepthwiseConv2D(
                convolution.kernel_size, depthwise_regularizer=self._penalty(), **options
            )
        else:
            layer = tf_keras.layers.Conv2D(
                convolution.filters,
                convolution.kernel_size,
                kernel_regularizer=self._penalty(),
                **options,
            )
        return layer(x)

    def add(self, inputs: list[tf.Tensor], name: str, activation: str | None = None) -> tf.Tensor:
        x = tf_keras.layers.Add(name=self._named(f"{name}.sum"))(inputs)
        return tf_keras.layers.Activation(activation, name=self._named(name))(x)

    def concat(self, inputs: list[tf.Tensor], name: str) -> tf.Tensor:
        return tf_keras.layers.Concatenate(name=self._named(name))(inputs)

    def pool(self, x: tf.Tensor, name: str) -> tf.Tensor:
        return tf_keras.layers.GlobalAveragePooling2D(
            data_format=DATA_FORMAT, name=self._named(name)
        )(x)

    def head(self, x: tf.Tensor, name: str, classes: int) -> tf.Tensor:
        return tf_keras.layers.Dense(
            classes, kernel_regularizer=self._penalty(), name=self._named(name)
        )(x)

    def _named(self, name: str) -> str:
        return f"{self.node}.{name}"

    def _penalty(self) -> tf_keras.regularizers.L2 | None:
        return tf_keras.regularizers.L2(self.weight_decay / 2) if self.weight_decay else None


def flat_model(ensemble: TreeEnsemble, weight_decay: float = 0.0) -> tf_keras.Model:
    """The whole tree as one functional `tf_keras` model.

    Args:
      ensemble: gives architecture, tree and images; its weights don't count.
      weight_decay: coefficient of the kernels' penalty, see `TrainingLayers`.

    Returns:
      A model of uint8 images `[batch, height, width, channels]` to leaf logits
      `[batch, leaves, classes]`, each node computed once, with fresh weights.
    """
    tree, spec = ensemble.tree, ensemble.images
    classes = len(spec.class_names)
    inputs = tf_keras.Input(spec.shape, dtype="uint8", name="images")
    normalise = tf_keras.layers.Rescaling(
        [1.0 / std for std in spec.std],
        [-mean / std for mean, std in zip(spec.mean, spec.std, strict=True)],
        name="normalise",
    )
    images, outputs = normalise(inputs), {}
    for block, node in tree.nodes_of(range(tree.leaves)):
        layers = FlatLayers(f"block{block}.node{node}", weight_decay)
        x = outputs[block - 1, tree.parent(block, node)] if block else images
        outputs[block, node] = node_output(
            ensemble.architecture, tree, layers, (block, node), x, classes
        )
    paths = map(tree.path, range(tree.leaves))
    leaves = [
        tf_keras.layers.Reshape((1, classes), name=f"leaf{leaf}")(outputs[len(path) - 1, path[-1]])
        for leaf, path in enumerate(paths)
    ]
    if len(leaves) > 1:
        leaves = [tf_keras.layers.Concatenate(axis=1, name="leaf_logits")(leaves)]
    return tf_keras.Model(inputs, leaves[0], name="flat")


def variables(model: tf_keras.Model) -> dict[str, tf.Variable]:
    """The weights of a flat model by canonical name, also of one that TFMOT has wrapped."""
    found = {}
    for layer in model.layers:
        unit = getattr(layer, "layer", layer).name.replace(".", "/")
        for variable in layer.weights:
            kind = _KINDS.get(variable.name.split("/")[-1].split(":")[0])
            if kind:
                found[f"{unit}/{kind}"] = variable
    return found


def read(model: tf_keras.Model) -> dict[str, np.ndarray]:
    """Copies of the weights of a flat model by canonical name."""
    return {name: variable.numpy() for name, variable in variables(model).items()}


def load(model: tf_keras.Model, values: dict[str, np.ndarray]) -> None:
    """Sets all weights of a flat model from canonical weights of the deploy factory."""
    for name, variable in variables(model).items():
        variable.assign(values[name])
