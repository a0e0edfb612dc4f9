"""A tree of networks whose nodes are computed block by block, side by side."""

import dataclasses
import functools

import keras
from keras import ops

from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.models import averaging, weights
from hne_tf.models.architectures.architecture import Activation, Architecture
from hne_tf.models.ensemble import Ensemble, Network, TreeEnsemble
from hne_tf.models.layers.grouped import GroupedLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.models.nodes import (
    check_blocks,
    images_and_normalisation,
    inputs_like,
    node_name,
    node_output,
)
from hne_tf.tree import Paths


@keras.saving.register_keras_serializable("hne_tf")
class GroupedEnsemble(Ensemble):
    """The networks of a tree: images to leaf logits `[batch, leaves, classes]`.

    The same function as `TreeEnsemble`, to be trained on accelerators, and the same
    weights by canonical name (`models/weights.py`): a trained model is evaluated
    and exported as a `TreeEnsemble`. A functional sub-network computes all nodes
    of a block, and with exits one the exit and one what goes on.

    Args:
      architecture: the network that is cut into blocks, as for `TreeEnsemble`.
      tree: which nodes there are.
      images: shape, classes and normalisation of the images.
      layers: factory that builds each unit for all nodes, `GroupedLayers()` by default.
      average: how leaves are averaged, as for `TreeEnsemble`.

    Raises:
      InputError: if tree and architecture differ in their number of blocks, or the
        architecture is not `groupable`.
    """

    def __init__(
        self,
        architecture: Architecture,
        tree: Paths,
        images: ImageSpec,
        layers: GroupedLayers | None = None,
        average: str = "logits",
        name: str = "hne",
    ) -> None:
        check_blocks(architecture, tree)
        if not architecture.groupable:
            raise InputError(
                "nodes are computed together for a groupable architecture only, got "
                f"{type(architecture).__name__}"
            )
        averaging.check_average(average)
        layers = GroupedLayers() if layers is None else layers
        inputs, normalise = images_and_normalisation(images)
        height, width, channels = images.shape
        # One root sees the images.
        x = keras.layers.Reshape((height, width, 1, channels), dtype="float32", name="root")(
            normalise(inputs)
        )
        classes = len(images.class_names)
        networks, outputs = _connect(architecture, tree, layers, x, classes)
        logits = [
            output
            for (((block, node), *_), _), output in zip(networks, outputs, strict=True)
            if tree.is_leaf(block, node)
        ]
        super().__init__(inputs, ops.concatenate(logits, axis=1), name=name)
        self.architecture = architecture
        self.tree = tree
        self.factory = layers
        self.images = images
        self.average = average
        self.networks = networks
        self._activations = {
            node_name(place): (output, index)
            for (places, _), output in zip(networks, outputs, strict=True)
            for index, place in enumerate(places)
        }
        # A function, as Keras would save the models in a dict with this one.
        self._observed = functools.cache(self._observe)

    def branched(self) -> TreeEnsemble:
        """The same networks with the same weights as a `TreeEnsemble`."""
        layers = TrainingLayers(
            self.factory.weight_decay,
            self.factory.norm_momentum,
            self.factory.synchronized,
            branch_gradients=self.factory.branch_gradients,
        )
        tree = TreeEnsemble(
            self.architecture, self.tree, self.images, layers, self.average, self.name
        )
        weights.load(tree, weights.read(self))
        return tree

    def _activation(self, name: str) -> Activation:
        """What one node of a group gives."""
        output, index = self._activations[name]
        return keras.tree.map_structure(lambda x: x[..., index, :], output)


def _connect(
    architecture: Architecture,
    tree: Paths,
    layers: GroupedLayers,
    x: keras.KerasTensor,
    classes: int,
) -> tuple[list[Network], list[Activation]]:
    """Sub-networks of all groups, in order, and what each gives."""
    networks: list[Network] = []
    computed: list[Activation] = []
    above: dict[int, Activation] = {0: x}
    for block in range(tree.blocks):
        outputs: dict[int, Activation] = {}
        for nodes in tree.groups(block):
            # All nodes of a group hang from the nodes of one group.
            given = above[tree.parent(block, nodes[0]) if block else 0]
            entry = inputs_like(given)
            of_nodes = dataclasses.replace(layers, nodes=len(nodes))
            y = node_output(architecture, tree, of_nodes, (block, nodes[0]), entry, classes)
            network = keras.Model(entry, y, name=f"block{block}.nodes{nodes[0]}to{nodes[-1]}")
            networks.append((tuple((block, node) for node in nodes), network))
            computed.append(network(given))
            outputs |= dict.fromkeys(nodes, computed[-1])
        above = outputs
    return networks, computed
