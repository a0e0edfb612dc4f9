"""Shows where a Keras model can be cut: hne-cut keras.applications.MobileNetV3Small.

The model is an import path of a function that returns a functional model, or a .keras file.
Prints a row for each place: the activation that a cut keeps, multiply-adds and parameters before
and after it, and the block that ends there in the tree of --branching. A second table has the cost
of every ensemble size of that tree. Parameters are those of an export, which folds batch norms.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from hne_tf.bin import app

if TYPE_CHECKING:
    from hne_tf.models.architectures import KerasFunctional
    from hne_tf.tree import Tree


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this binary."""
    del argv
    # Flags may come after the model.
    values.set_gnu_getopt()
    flags.DEFINE_list("branching", ["1", "2", "2", "2"], "A factor per block.", flag_values=values)
    flags.DEFINE_list(
        "image_shape",
        None,
        "Height, width and channels of the images; the model's own by default.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "cut_at",
        None,
        "Layers that the blocks end with, but for the last one; by default blocks cost about the "
        "same.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "classifier",
        "keep",
        ["keep", "replace", "add"],
        "What becomes of the model's classifier; costs are without a new one.",
        flag_values=values,
    )


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints the tables."""
    with app.quiet_import():
        from hne_tf.errors import InputError
        from hne_tf.models.architectures import KerasFunctional
        from hne_tf.models.functional import graph, sources
        from hne_tf.tree import Tree

    if len(positional) != 1:
        raise InputError(f"one model must be named, got {' '.join(positional) or 'none'}")
    tree = Tree(tuple(app.integers("branching", values.branching)))
    shape = values.image_shape and app.integers("image_shape", values.image_shape)
    model = graph.functional(sources.load(positional[0], shape))
    if not shape:
        shape = model.inputs[0].shape[1:]
        if None in shape:
            raise InputError(f"--image_shape must be set for a model of any size, got {shape}")
    cut = KerasFunctional.of(model, shape, tree.blocks, values.cut_at, values.classifier)
    print(places_table(cut))
    print()
    print(sizes_table(cut, tree))
    if line := cut.unevenness():
        print(f"\nnote: {line}")


def places_table(cut: "KerasFunctional") -> str:
    """A row for each place at which a model can be cut."""
    import keras

    from hne_tf.evaluation import cost
    from hne_tf.evaluation.tables import aligned
    from hne_tf.models.functional import cuts

    network = cut.network
    whole = cost.part_cost(network, cut)
    header = (
        *("layer", "activation", "multiply-adds before", "multiply-adds after"),
        *("parameters before", "parameters after", "block"),
    )
    rows = []
    for place in cuts.places(network):
        before = cost.part_cost(keras.Model(network.inputs, place.tensor), cut)
        ends = [block for block, name in enumerate(cut.cut_at) if name == place.name]
        rows.append(
            (
                place.name,
                " x ".join(map(str, place.shape)),
                f"{before.multiply_adds:,}",
                f"{whole.multiply_adds - before.multiply_adds:,}",
                f"{before.parameters:,}",
                f"{whole.parameters - before.parameters:,}",
                f"end of {ends[0]}" if ends else f"shares {place.split}" if place.split else "",
            )
        )
    return aligned(header, rows, {"layer", "activation", "block"})


def sizes_table(cut: "KerasFunctional", tree: "Tree") -> str:
    """A row for each ensemble size of the tree of a cut model."""
    from hne_tf.evaluation import cost
    from hne_tf.evaluation.tables import aligned

    costs = [cost.part_cost(part, cut) for part in cut.parts]
    model = sum(each.multiply_adds for each in costs)
    rows = []
    for size in range(1, tree.leaves + 1):
        nodes = [tree.active_nodes(size, block) for block in range(tree.blocks)]
        multiply_adds, parameters = (
            sum(n * getattr(each, name) for n, each in zip(nodes, costs, strict=True))
            for name in ("multiply_adds", "parameters")
        )
        rows.append(
            (str(size), f"{multiply_adds:,}", f"{parameters:,}", f"{multiply_adds / model:.2f}")
        )
    return aligned(("leaves", "multiply-adds", "parameters", "multiply-adds / model"), rows)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("hne-cut", define_flags, main, argv, app.in_batches)


if __name__ == "__main__":
    sys.exit(run())
