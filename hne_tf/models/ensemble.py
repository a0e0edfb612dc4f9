"""A tree of networks as one Keras functional model of leaf logits."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops

from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.image_spec import ImageSpec
from hne_tf.models import averaging
from hne_tf.models.architectures.mobilenet_v2 import MobileNetV2
from hne_tf.models.architectures.msdnet import MSDNet
from hne_tf.models.architectures.resnet import ResNet
from hne_tf.models.layers.factory import DeployLayers, LayerFactory, TrainingLayers
from hne_tf.models.layers.grouped import GroupedLayers
from hne_tf.tree import Paths, Tree

# What a block gives to the next: a tensor, or a list of one per scale.
Activation = Any


# Places `(block, node)` in the tree, and the sub-network that computes their nodes.
Network = tuple[tuple[tuple[int, int], ...], keras.Model]


class Architecture(Protocol):
    """A network cut into blocks: a frozen dataclass of settings, in plain values.

    Attributes:
      blocks: number of blocks.
    """

    @property
    def blocks(self) -> int: ...

    def block(self, layers: LayerFactory, block: int, x: Activation) -> Activation:
        """Applies block number `block` to the images or to what the block before gives."""

    def head(self, layers: LayerFactory, x: Activation, classes: int) -> Any:
        """Logits `[batch, classes]` of what a block gives."""


_ARCHITECTURES = {kind.__name__: kind for kind in (ResNet, MobileNetV2, MSDNet)}


class Ensemble(keras.Model):
    """What every form of a tree's networks has: settings, saving and probabilities.

    Attributes:
      architecture: the network that is cut into blocks.
      tree: which nodes there are.
      images: shape, classes and normalisation of the images.
      factory: what each unit is built by.
      average: how leaves are averaged, one of `averaging.AVERAGES`.
    """

    architecture: Architecture
    tree: Paths
    images: ImageSpec
    factory: LayerFactory
    average: str

    def get_config(self) -> dict[str, Any]:
        """What `from_config` builds the same model from, as plain values."""
        return {
            "architecture": type(self.architecture).__name__,
            "architecture_settings": dataclasses.asdict(self.architecture),
            **dataclasses.asdict(self.tree),
            "factory": type(self.factory).__name__,
            "factory_settings": dataclasses.asdict(self.factory),
            "images": dataclasses.asdict(self.images),
            "average": self.average,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Ensemble":
        """Builds the model that `get_config` describes, untrained."""
        del custom_objects
        return cls(
            _ARCHITECTURES[config["architecture"]](**config["architecture_settings"]),
            Exits(config["exits"]) if "exits" in config else Tree(config["branching"]),
            ImageSpec(**config["images"]),
            _factory(config["factory"])(**config["factory_settings"]),
            # Models saved before averages were part of them.
            config.get("average", "logits"),
            config["name"],
        )

    def probabilities(
        self, images: Any, size: int | None = None, batch_size: int = 32
    ) -> np.ndarray:
        """Class probabilities of the ensemble of the first `size` leaves.

        Args:
          images: uint8 `[examples, height, width, channels]`, or what `predict` takes.
          size: number of leaves, all by default.
          batch_size: images per call.

        Returns:
          float32 `[examples, classes]`.

        Raises:
          InputError: unless `1 <= size <= leaves`.
        """
        size = self.tree.leaves if size is None else size
        self.tree.check_size(size)
        members = averaging.leaves(size, self.average)
        leaf_logits = self._predict_leaves(images, members, batch_size)
        average = "probabilities" if self.average == "probabilities" else "logits"
        scores = averaging.ensemble_log_probabilities(leaf_logits, [len(members)], average)
        return np.exp(ops.convert_to_numpy(scores)[:, 0])

    def _predict_leaves(self, images: Any, leaves: range, batch_size: int) -> np.ndarray:
        """Logits `[examples, len(leaves), classes]` of some leaves."""
        leaf_logits = self.predict(images, batch_size=batch_size, verbose=0)
        return leaf_logits[:, leaves.start : leaves.stop]


@keras.saving.register_keras_serializable("hne_tf")
class TreeEnsemble(Ensemble):
    """The networks of a tree: images to leaf logits `[batch, leaves, classes]`.

    Each node of the tree is a named functional sub-network (`block2.node3`)
    with its own weights, called once. Images are uint8 `[batch, height, width,
    channels]`; normalisation is part of the graph.

    Args:
      architecture: the network that is cut into blocks: `ResNet(…)`,
        `MobileNetV2(…)` or `MSDNet(…)`.
      tree: which nodes there are: `Tree(…)` with one branching factor per block, or
        `Exits(…)`, a single network with a classifier after each block.
      images: shape, classes and normalisation of the images.
      layers: factory that builds each unit, `TrainingLayers()` by default.
      average: how leaves are averaged, one of `averaging.AVERAGES`.

    Raises:
      InputError: if tree and architecture differ in their number of blocks, or the
        average is unknown.

    Example:
      >>> resnet = ResNet("basic", widths=(8, 8, 8), units=(1, 1, 1), strides=(1, 2, 1))
      >>> digits = ImageSpec((8, 8, 1), tuple("0123456789"), mean=(78.0,), std=(96.0,))
      >>> ensemble = TreeEnsemble(resnet, Tree((1, 2, 2)), digits)
      >>> ensemble.prefix(3).output_shape
      (None, 3, 10)
    """

    def __init__(
        self,
        architecture: Architecture,
        tree: Paths,
        images: ImageSpec,
        layers: LayerFactory | None = None,
        average: str = "logits",
        name: str = "hne",
    ) -> None:
        check_blocks(architecture, tree)
        averaging.check_average(average)
        layers = TrainingLayers() if layers is None else layers
        inputs, normalise = images_and_normalisation(images)
        x = normalise(inputs)
        nodes = _build_nodes(architecture, tree, layers, x, len(images.class_names))
        super().__init__(inputs, _leaf_logits(tree, nodes, x, range(tree.leaves)), name=name)
        self.architecture = architecture
        self.tree = tree
        self.factory = layers
        self.images = images
        self.average = average
        self.normalise = normalise
        self.node_models = nodes
        # A function, as Keras would save the models in a dict with this one.
        self._built = functools.cache(self._build_leaves)

    @property
    def networks(self) -> list[Network]:
        """The sub-networks, each with the place of its node."""
        return [
            (((block, node),), network)
            for block, row in enumerate(self.node_models)
            for node, network in enumerate(row)
        ]

    def prefix(self, size: int) -> keras.Model:
        """The model of the first `size` leaves: only their nodes, the same weights.

        Returns:
          A model of images to leaf logits `[batch, size, classes]`, built once.

        Raises:
          InputError: unless `1 <= size <= leaves`.
        """
        self.tree.check_size(size)
        return self.of_leaves(range(size))

    def of_leaves(self, leaves: range) -> keras.Model:
        """The model of some leaves, as `prefix` is that of the first ones.

        Returns:
          A model of images to leaf logits `[batch, len(leaves), classes]`, built once.
        """
        return self if leaves == range(self.tree.leaves) else self._built(leaves)

    def _build_leaves(self, leaves: range) -> keras.Model:
        images = keras.Input(self.images.shape, dtype="uint8", name="images")
        logits = _leaf_logits(self.tree, self.node_models, self.normalise(images), leaves)
        name = f"{self.name}.leaves{leaves.start}to{leaves.stop - 1}"
        return keras.Model(images, logits, name=name)

    def nodes_of(self, leaves: Iterable[int]) -> list[keras.Model]:
        """The sub-networks that some leaves need, each once."""
        return [self.node_models[block][node] for block, node in self.tree.nodes_of(leaves)]

    def rebuilt(self, layers: LayerFactory) -> "TreeEnsemble":
        """The same tree of networks built by another factory, untrained."""
        return TreeEnsemble(
            self.architecture, self.tree, self.images, layers, self.average, self.name
        )

    def _predict_leaves(self, images: Any, leaves: range, batch_size: int) -> np.ndarray:
        return self.of_leaves(leaves).predict(images, batch_size=batch_size, verbose=0)


def _factory(name: str) -> type[LayerFactory]:
    """The layer factory of this class name."""
    # These need TensorFlow itself, and are loaded only for a model that has them.
    if name == "QuantizedLayers":
        from hne_tf.models.layers.quantized import QuantizedLayers

        return QuantizedLayers
    if name.startswith("Fused"):
        from hne_tf.models.layers import fused

        return {
            factory.__name__: factory
            for factory in (fused.FusedTrainingLayers, fused.FusedGroupedLayers)
        }[name]
    if name == "ServedLayers":
        from hne_tf.models.layers.served import ServedLayers

        return ServedLayers
    factories = (TrainingLayers, DeployLayers, GroupedLayers)
    return {factory.__name__: factory for factory in factories}[name]


def images_and_normalisation(images: ImageSpec) -> tuple[keras.KerasTensor, keras.Layer]:
    """The input of uint8 images, and the layer that normalises them."""
    normalise = keras.layers.Rescaling(
        [1.0 / std for std in images.std],
        [-mean / std for mean, std in zip(images.mean, images.std, strict=True)],
        name="normalise",
    )
    return keras.Input(images.shape, dtype="uint8", name="images"), normalise


def node_output(
    architecture: Architecture,
    tree: Paths,
    layers: LayerFactory,
    place: tuple[int, int],
    x: Activation,
    classes: int,
) -> Activation:
    """What the node at `place`, `(block, node)`, computes of its parent's activation `x`."""
    if isinstance(x, list):
        x = [layers.entry(each, f"entry{index}") for index, each in enumerate(x)]
    else:
        x = layers.entry(x, "entry")
    if tree.has_layers(*place):
        x = architecture.block(layers, place[0], x)
    return architecture.head(layers, x, classes) if tree.is_leaf(*place) else x


def check_blocks(architecture: Architecture, tree: Paths) -> None:
    """Raises `InputError` unless the tree has the network's blocks."""
    if isinstance(tree, Exits):
        if architecture.blocks != tree.exits:
            raise InputError(
                f"exits must be the number of blocks, {architecture.blocks}, got {tree.exits}"
            )
    elif architecture.blocks != tree.blocks:
        raise InputError(
            f"branching needs one factor for each of the {architecture.blocks} blocks, "
            f"got {tree.branching}"
        )


def _build_nodes(
    architecture: Architecture, tree: Paths, layers: LayerFactory, images: Any, classes: int
) -> list[list[keras.Model]]:
    """One functional sub-network per node: `nodes[block][node]`."""
    nodes: list[list[keras.Model]] = []
    for block in range(tree.blocks):
        row = []
        for node in range(tree.nodes(block)):
            given = nodes[-1][tree.parent(block, node)].output if nodes else images
            x = inputs_like(given)
            y = node_output(architecture, tree, layers, (block, node), x, classes)
            row.append(keras.Model(x, y, name=f"block{block}.node{node}"))
        nodes.append(row)
    return nodes


def inputs_like(activation: Activation) -> Activation:
    """Inputs of the shapes of an activation."""
    if isinstance(activation, list):
        return [
            keras.Input(each.shape[1:], dtype=each.dtype, name=f"activation{index}")
            for index, each in enumerate(activation)
        ]
    return keras.Input(activation.shape[1:], dtype=activation.dtype, name="activation")


def _leaf_logits(tree: Paths, nodes: list[list[keras.Model]], x: Any, leaves: range) -> Any:
    """Logits `[batch, len(leaves), classes]` of some leaves, each node computed once."""
    outputs: dict[tuple[int, int], Activation] = {}
    for block, node in tree.nodes_of(leaves):
        given = outputs[block - 1, tree.parent(block, node)] if block else x
        outputs[block, node] = nodes[block][node](given)
    paths = map(tree.path, leaves)
    return ops.stack([outputs[len(path) - 1, path[-1]] for path in paths], axis=1)
