"""A tree of networks whose nodes are computed block by block, side by side."""

import dataclasses

import keras
from keras import ops

from hne_tf.image_spec import ImageSpec
from hne_tf.models import averaging, weights
from hne_tf.models.ensemble import (
    Activation,
    Architecture,
    Ensemble,
    Network,
    TreeEnsemble,
    check_blocks,
    images_and_normalisation,
    inputs_like,
    node_output,
)
from hne_tf.models.layers.factory import TrainingLayers
from hne_tf.models.layers.grouped import GroupedLayers
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
      InputError: if tree and architecture differ in their number of blocks.
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
        averaging.check_average(average)
        layers = GroupedLayers() if layers is None else layers
        inputs, normalise = images_and_normalisation(images)
        height, width, channels = images.shape
        # One root sees the images.
        x = keras.layers.Reshape((height, width, 1, channels), name="root")(normalise(inputs))
        classes = len(images.class_names)
        networks, logits = _connect(architecture, tree, layers, x, classes)
        super().__init__(inputs, ops.concatenate(logits, axis=1), name=name)
        self.architecture = architecture
        self.tree = tree
        self.factory = layers
        self.images = images
        self.average = average
        self.networks = networks

    def branched(self) -> TreeEnsemble:
        """The same networks with the same weights as a `TreeEnsemble`."""
        layers = TrainingLayers(
            self.factory.weight_decay, self.factory.norm_momentum, self.factory.synchronized
        )
        tree = TreeEnsemble(
            self.architecture, self.tree, self.images, layers, self.average, self.name
        )
        weights.load(tree, weights.read(self))
        return tree


def _connect(
    architecture: Architecture,
    tree: Paths,
    layers: GroupedLayers,
    x: keras.KerasTensor,
    classes: int,
) -> tuple[list[Network], list[keras.KerasTensor]]:
    """Sub-networks of all groups, and the leaves' logits in order."""
    networks: list[Network] = []
    logits = []
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
            computed = network(given)
            if tree.is_leaf(block, nodes[0]):
                logits.append(computed)
            outputs |= dict.fromkeys(nodes, computed)
        above = outputs
    return networks, logits
