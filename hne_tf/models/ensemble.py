"""A tree of networks as one Keras functional model of leaf logits."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.image_spec import ImageSpec
from hne_tf.models import averaging, serialisation
from hne_tf.models.architectures.architecture import Activation, Architecture
from hne_tf.models.compiling import CompiledModel
from hne_tf.models.layers.factory import LayerFactory
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.models.nodes import (
    check_blocks,
    images_and_normalisation,
    inputs_like,
    node_name,
    node_output,
)
from hne_tf.tree import Paths, Tree

# Places `(block, node)` in the tree, and the sub-network that computes their nodes.
Network = tuple[tuple[tuple[int, int], ...], keras.Model]


class Ensemble(CompiledModel):
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

    # Where the graph has the activation of each node, by the node's name.
    _activations: Mapping[str, Any]
    # What the last call gave for those that the loss asks for.
    _answered: Mapping[str, Any] | None = None

    def get_config(self) -> dict[str, Any]:
        """What `from_config` builds the same model from, as plain values."""
        return {
            "architecture": serialisation.registered_name(self.architecture),
            "architecture_settings": self.architecture.get_config(),
            **dataclasses.asdict(self.tree),
            "factory": serialisation.registered_name(self.factory),
            "factory_settings": self.factory.get_config(),
            "images": dataclasses.asdict(self.images),
            "average": self.average,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Ensemble":
        """Builds the model that `get_config` describes, untrained."""
        del custom_objects
        return cls(
            serialisation.architecture(config["architecture"], config["architecture_settings"]),
            Exits(config["exits"]) if "exits" in config else Tree(config["branching"]),
            ImageSpec(**config["images"]),
            serialisation.factory(config["factory"], config["factory_settings"]),
            # Models saved before averages were part of them.
            config.get("average", "logits"),
            config["name"],
        )

    def answer_by(self, average: str) -> None:
        """Averages leaves in another way than before, whatever they were trained for.

        Args:
          average: one of `averaging.AVERAGES`.

        Raises:
          InputError: for another one, or one of exits for a tree.
        """
        self.average = averaging.check_fits(average, isinstance(self.tree, Exits))

    def with_activations(self, names: Sequence[str]) -> keras.Model:
        """The model of images to leaf logits and the activations of some nodes.

        Args:
          names: names of nodes, such as `"block1.node0"`.

        Returns:
          A model of images to a dictionary with `"leaf_logits"` and the activation of
          each name, built once; of a leaf that is its logits.

        Raises:
          InputError: for a name that no node has.
        """
        return self._observed(self._checked_names(names))

    def answering(self, loss: keras.losses.Loss, network: Any = None) -> Callable[..., Any]:
        """What gives a loss all that it asks for of a batch of images.

        Args:
          loss: an objective.
          network: what computes the model in its place, and has `with_activations` too.

        Returns:
          A function of images and `training` to leaf logits, or to a dictionary for a loss
          that has activations or a teacher, see `hne_tf.objectives.Objective`.

        Raises:
          InputError: for activations of a node that there is not.
        """
        names, teacher = getattr(loss, "activations", ()), getattr(loss, "teacher", None)
        network = self if network is None else network
        observed = network.with_activations(names) if names or teacher is not None else network
        if teacher is None:
            return observed

        def answer(images: Any, training: bool | None = None) -> dict[str, Any]:
            return {**observed(images, training=training), "teacher_logits": teacher(images)}

        return answer

    def build_adversary(self, loss: keras.losses.Loss) -> Any:
        """The adversary of a loss, built for what the model answers; None if it has none."""
        adversary, names = getattr(loss, "adversary", None), getattr(loss, "activations", ())
        if adversary is not None:
            adversary.build((self.with_activations(names) if names else self).output)
        return adversary

    def _checked_names(self, names: Sequence[str]) -> tuple[str, ...]:
        for name in names:
            if name not in self._activations:
                raise InputError(
                    f"activations must be of nodes block0.node0 to {list(self._activations)[-1]}, "
                    f"got {name!r}"
                )
        return tuple(names)

    def _observe(self, names: tuple[str, ...]) -> keras.Model:
        asked = {name: self._activation(name) for name in names}
        return keras.Model(self.inputs, {"leaf_logits": self.output, **asked}, name="observed")

    def _activation(self, name: str) -> Activation:
        """What a node gives, in the graph."""
        return self._activations[name]

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Leaf logits; activations that the loss asks for are kept for `compute_loss`."""
        if not self._asked:
            return super().call(inputs, training=training, mask=mask)
        self._answered = self._observed(self._asked)(inputs, training=training)
        return self._answered["leaf_logits"]

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The loss of a batch, which is given the activations that it asks for."""
        teacher = getattr(self.loss, "teacher", None)
        if not self._asked and teacher is None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        answered, self._answered = self._answered or {"leaf_logits": y_pred}, None
        if teacher is not None:
            answered = {**answered, "teacher_logits": teacher(x)}
        return self.loss(y, answered, sample_weight) + sum(self.losses)

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
        average = "logits" if self.average == "last" else self.average
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
        `MobileNetV2(…)`, `MSDNet(…)` or one of your own.
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
        activations = activations_of(tree, nodes, x, range(tree.leaves))
        super().__init__(inputs, leaf_logits_of(tree, activations, range(tree.leaves)), name=name)
        self.architecture = architecture
        self.tree = tree
        self.factory = layers
        self.images = images
        self.average = average
        self.normalise = normalise
        self.node_models = nodes
        self._activations = {node_name(place): x for place, x in activations.items()}
        # Functions, as Keras would save the models in a dict with this one.
        self._observed = functools.cache(self._observe)
        self._built = functools.cache(self._build_leaves)

    @classmethod
    def from_keras(
        cls,
        model: keras.Model,
        branching: Sequence[int],
        images: ImageSpec,
        *,
        cut_at: Sequence[str] | None = None,
        classifier: str = "keep",
        average: str = "logits",
        name: str = "hne",
        **start: Any,
    ) -> "TreeEnsemble":
        """Cuts a Keras model in blocks and makes a tree of clones, with its weights.

        Args:
          model: functional, or a built `Sequential`, of one input and one output.
          branching: one factor per block.
          images: their normalisation is what the model was trained with; mean 0 and std
            1 for a model with preprocessing layers inside.
          cut_at: a layer that each block but the last one ends with; by default blocks
            cost about the same.
          classifier: `"keep"` the model's own, `"replace"` it, or `"add"` one to a model
            without. Leaves with kept classifiers stay the same until weights are perturbed.
          average: as for the constructor.
          name: likewise.
          start: weights that nodes start from, see `functional.starting.start`.

        Raises:
          InputError: for a model, cut or option that cannot be; the message says why.

        Example:
          >>> network = keras.applications.MobileNetV3Small((96, 96, 3), include_top=False)
          >>> images = ImageSpec((96, 96, 3), ("cat", "dog"), mean=(0.0,) * 3, std=(1.0,) * 3)
          >>> tree = TreeEnsemble.from_keras(network, (1, 2, 2), images, classifier="add")
        """
        # They import this module.
        from hne_tf.models.architectures.keras_functional import KerasFunctional
        from hne_tf.models.functional import starting

        tree = Tree(tuple(branching))
        cut = KerasFunctional.of(model, images.shape, tree.blocks, cut_at, classifier)
        ensemble = cls(cut, tree, images, average=average, name=name)
        starting.start(ensemble, model, **start)
        return ensemble

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
        activations = activations_of(self.tree, self.node_models, self.normalise(images), leaves)
        logits = leaf_logits_of(self.tree, activations, leaves)
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
            row.append(keras.Model(x, y, name=node_name((block, node))))
        nodes.append(row)
    return nodes


def activations_of(
    tree: Paths, nodes: Sequence[Sequence[Callable[[Any], Any]]], x: Any, leaves: range
) -> dict[tuple[int, int], Activation]:
    """What each node gives that some leaves need, by its place; each is computed once."""
    outputs: dict[tuple[int, int], Activation] = {}
    for block, node in tree.nodes_of(leaves):
        given = outputs[block - 1, tree.parent(block, node)] if block else x
        outputs[block, node] = nodes[block][node](given)
    return outputs


def leaf_logits_of(
    tree: Paths, activations: Mapping[tuple[int, int], Activation], leaves: range
) -> Any:
    """Logits `[batch, len(leaves), classes]` of some leaves."""
    paths = map(tree.path, leaves)
    return ops.stack([activations[len(path) - 1, path[-1]] for path in paths], axis=1)
