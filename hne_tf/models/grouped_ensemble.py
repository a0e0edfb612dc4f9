"""A tree of networks whose nodes are computed block by block, side by side."""

import dataclasses
from typing import Any

import keras
from keras import ops

from hne_tf.image_spec import ImageSpec
from hne_tf.models.ensemble import (
    Activation,
    Architecture,
    Network,
    check_blocks,
    described,
    images_and_normalisation,
    inputs_like,
    node_output,
    settings_of,
)
from hne_tf.models.layers.grouped import GroupedLayers
from hne_tf.tree import Paths


@keras.saving.register_keras_serializable("hne_tf")
class GroupedEnsemble(keras.Model):
    """The networks of a tree: images to leaf logits `[batch, leaves, classes]`.

    The same function as `TreeEnsemble`, to be trained on accelerators, and the same
    weights by canonical name (`models/weights.py`): a trained model is evaluated
    and exported as a `TreeEnsemble`. A functional sub-network computes all nodes
    of a block, and with exits one the exit and one what goes on.

    Args:
      architecture: the network that is cut into blocks, as for `TreeEnsemble`.
      tree: which nodes there are.
      layers: factory that builds each unit for all nodes.
      images: shape, classes and normalisation of the images.

    Raises:
      InputError: if tree and architecture differ in their number of blocks.
    """

    def __init__(
        self,
        architecture: Architecture,
        tree: Paths,
        layers: GroupedLayers,
        images: ImageSpec,
        name: str = "hne",
    ) -> None:
        check_blocks(architecture, tree)
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
        self.networks = networks

    def get_config(self) -> dict[str, Any]:
        """What `from_config` builds the same model from, as plain values."""
        return settings_of(self)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "GroupedEnsemble":
        """Builds the model that `get_config` describes, untrained."""
        del custom_objects
        return cls(*described(config))


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
