"""What both forms of an ensemble build the nodes of their tree from."""

import keras

from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.image_spec import ImageSpec
from hne_tf.models.architectures.architecture import Activation, Architecture
from hne_tf.models.layers.factory import LayerFactory
from hne_tf.tree import Paths


def images_and_normalisation(images: ImageSpec) -> tuple[keras.KerasTensor, keras.Layer]:
    """The input of uint8 images, and the layer that normalises them."""
    normalise = keras.layers.Rescaling(
        [1.0 / std for std in images.std],
        [-mean / std for mean, std in zip(images.mean, images.std, strict=True)],
        dtype="float32",
        name="normalise",
    )
    return keras.Input(images.shape, dtype="uint8", name="images"), normalise


def node_name(place: tuple[int, int]) -> str:
    """The name of the node at `(block, node)`, such as `block1.node0`."""
    return "block{}.node{}".format(*place)


def node_output(
    architecture: Architecture,
    tree: Paths,
    layers: LayerFactory,
    place: tuple[int, int],
    x: Activation,
    classes: int,
) -> Activation:
    """What the node at `place`, `(block, node)`, computes of its parent's activation `x`."""

    def read(x: keras.KerasTensor, suffix: str = "") -> keras.KerasTensor:
        x = layers.branch(x, f"branch{suffix}", tree.share(*place))
        return layers.entry(x, f"entry{suffix}")

    x = [read(each, str(index)) for index, each in enumerate(x)] if isinstance(x, list) else read(x)
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


def inputs_like(activation: Activation) -> Activation:
    """Inputs of the shapes of an activation."""
    if isinstance(activation, list):
        return [
            keras.Input(each.shape[1:], dtype=each.dtype, name=f"from_parent{index}")
            for index, each in enumerate(activation)
        ]
    return keras.Input(activation.shape[1:], dtype=activation.dtype, name="from_parent")
