"""A tree of networks as one Keras functional model of leaf logits."""

import dataclasses
from typing import Any

import keras
from keras import ops

from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.models.layers import DeployLayers, LayerFactory, TrainingLayers
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
      images: shape, classes and normalisation of the images.

    Raises:
      InputError: if tree and architecture differ in their number of blocks.

    Example:
      >>> resnet = ResNet("basic", widths=(8, 8, 8), units=(1, 1, 1), strides=(1, 2, 1))
      >>> digits = ImageSpec((8, 8, 1), tuple("0123456789"), mean=(78.0,), std=(96.0,))
      >>> ensemble = TreeEnsemble(resnet, Tree((1, 2, 2)), TrainingLayers(), digits)
      >>> ensemble.prefix(3).output_shape
      (None, 3, 10)
    """

    def __init__(
        self,
        architecture: ResNet,
        tree: Tree,
        layers: LayerFactory,
        images: ImageSpec,
        name: str = "hne",
    ) -> None:
        if architecture.blocks != tree.blocks:
            raise InputError(
                f"branching needs one factor for each of the {architecture.blocks} blocks, "
                f"got {tree.branching}"
            )
        inputs = keras.Input(images.shape, dtype="uint8", name="images")
        normalise = keras.layers.Rescaling(
            [1.0 / std for std in images.std],
            [-mean / std for mean, std in zip(images.mean, images.std, strict=True)],
            name="normalise",
        )
        x = normalise(inputs)
        nodes = _build_nodes(architecture, tree, layers, x.shape[1:], len(images.class_names))
        super().__init__(inputs, _leaf_logits(tree, nodes, x, tree.leaves), name=name)
        self.architecture = architecture
        self.tree = tree
        self.factory = layers
        self.images = images
        self.normalise = normalise
        self.node_models = nodes

    def get_config(self) -> dict[str, Any]:
        """What `from_config` builds the same model from, as plain values."""
        return {
            "architecture": dataclasses.asdict(self.architecture),
            "branching": self.tree.branching,
            "factory": type(self.factory).__name__,
            "factory_settings": dataclasses.asdict(self.factory),
            "images": dataclasses.asdict(self.images),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "TreeEnsemble":
        """Builds the model that `get_config` describes, untrained."""
        del custom_objects
        return cls(
            ResNet(**config["architecture"]),
            Tree(config["branching"]),
            _factory(config["factory"])(**config["factory_settings"]),
            ImageSpec(**config["images"]),
            config["name"],
        )

    def prefix(self, size: int) -> keras.Model:
        """The model of the first `size` leaves: only their nodes, the same weights.

        Returns:
          A model of images to leaf logits `[batch, size, classes]`.

        Raises:
          InputError: unless `1 <= size <= leaves`.
        """
        self.tree.check_size(size)
        images = keras.Input(self.images.shape, dtype="uint8", name="images")
        logits = _leaf_logits(self.tree, self.node_models, self.normalise(images), size)
        return keras.Model(images, logits, name=f"{self.name}.prefix{size}")


def _factory(name: str) -> type[LayerFactory]:
    """The layer factory of this class name."""
    # These need TensorFlow itself, and are loaded only for a model that has them.
    if name == "QuantizedLayers":
        from hne_tf.models.quantized import QuantizedLayers

        return QuantizedLayers
    if name == "FusedTrainingLayers":
        from hne_tf.models.fused import FusedTrainingLayers

        return FusedTrainingLayers
    return {factory.__name__: factory for factory in (TrainingLayers, DeployLayers)}[name]


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
            y = architecture.block(layers, block, layers.entry(x, "entry"), classes)
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
