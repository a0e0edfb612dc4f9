"""A tree of networks as one Keras functional model of leaf logits."""

from typing import Any

import keras
from keras import ops

from hne_tf.errors import InputError
from hne_tf.models.layers import LayerFactory
from hne_tf.models.resnet import ResNet
from hne_tf.tree import Tree


@keras.saving.register_keras_serializable("hne_tf")
class TreeEnsemble(keras.Model):
    """The networks of a tree: images to leaf logits `[batch, leaves, classes]`.

    Each node of the tree is a named functional sub-network (`block2.node3`)
    with its own weights, called once. Images are uint8 `[batch, height, width,
    channels]`; normalisation is part of the graph.

    Args:
      architecture: the network that is cut into blocks, `ResNet(…)`.
      tree: which nodes there are, with one branching factor per block.
      layers: factory that builds each unit (`TrainingLayers`, `DeployLayers`).
      image_shape: `(height, width, channels)`.
      classes: number of classes.
      mean: per-channel mean of the training images, in 0..255.
      std: per-channel standard deviation of the training images, in 0..255.

    Raises:
      InputError: if tree and architecture differ in their number of blocks.

    Example:
      >>> tree = Tree((1, 2, 2))
      >>> resnet = ResNet("basic", widths=(8, 8, 8), units=(1, 1, 1), strides=(1, 2, 1))
      >>> ensemble = TreeEnsemble(
      ...     resnet, tree, TrainingLayers(), (8, 8, 1), 10, mean=(78.0,), std=(96.0,))
      >>> ensemble.prefix(3).output_shape
      (None, 3, 10)
    """

    def __init__(
        self,
        architecture: ResNet,
        tree: Tree,
        layers: LayerFactory,
        image_shape: tuple[int, int, int],
        classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        name: str = "hne",
    ) -> None:
        if architecture.blocks != tree.blocks:
            raise InputError(
                f"branching needs one factor for each of the {architecture.blocks} blocks, "
                f"got {tree.branching}"
            )
        images = keras.Input(image_shape, dtype="uint8", name="images")
        normalise = keras.layers.Rescaling(
            [1.0 / s for s in std],
            [-m / s for m, s in zip(mean, std, strict=True)],
            name="normalise",
        )
        nodes = _build_nodes(architecture, tree, layers, normalise(images).shape[1:], classes)
        outputs = _leaf_logits(tree, nodes, normalise(images), tree.leaves)
        super().__init__(inputs=images, outputs=outputs, name=name)
        self.tree = tree
        self.classes = classes
        self.image_shape = tuple(image_shape)
        self.normalise = normalise
        self.node_models = nodes

    def prefix(self, size: int) -> keras.Model:
        """The model of the first `size` leaves: only their nodes, the same weights.

        Returns:
          A model of images to leaf logits `[batch, size, classes]`.

        Raises:
          InputError: unless `1 <= size <= leaves`.
        """
        self.tree.check_size(size)
        images = keras.Input(self.image_shape, dtype="uint8", name="images")
        logits = _leaf_logits(self.tree, self.node_models, self.normalise(images), size)
        return keras.Model(images, logits, name=f"{self.name}.prefix{size}")


def _build_nodes(
    architecture: ResNet,
    tree: Tree,
    layers: LayerFactory,
    shape: tuple[int | None, ...],
    classes: int,
) -> list[list[keras.Model]]:
    """One functional sub-network per node: `nodes[block][node]`."""
    nodes = []
    for block in range(tree.blocks):
        row = []
        for node in range(tree.nodes(block)):
            x = keras.Input(shape, name="activation")
            y = architecture.block(layers, block, x, classes)
            row.append(keras.Model(x, y, name=f"block{block}.node{node}"))
        nodes.append(row)
        shape = row[0].output.shape[1:]
    return nodes


def _leaf_logits(tree: Tree, nodes: list[list[keras.Model]], x: Any, size: int) -> Any:
    """Logits `[batch, size, classes]` of the first leaves, each node computed once."""
    activations = [x]
    for block, row in enumerate(nodes):
        activations = [
            row[node](activations[tree.parent(block, node)])
            for node in range(tree.active_nodes(size, block))
        ]
    return ops.stack(activations, axis=1)
