"""How models of keras.applications are cut in blocks: where, and what each block costs.

    python benchmarks/cut_applications.py MobileNetV2 ConvNeXtTiny --side=96

Cuts eight models by default, with untrained weights, in --blocks blocks. Shows the multiply-adds
of each block as a part of their mean, the numbers that each cut keeps, the time of making a tree
as a multiple of making the model, and the largest difference between the answers of both.

With --export, the tree is also exported and written as a TFLite file, both of which compare every
signature and step with it. That takes minutes a model.
"""

import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from hne_tf.bin import app

if TYPE_CHECKING:
    import keras

    import hne_tf as hne

MODELS = (
    *("MobileNetV2", "MobileNetV3Small", "EfficientNetV2B0", "ResNet50V2"),
    *("ConvNeXtTiny", "DenseNet121", "Xception", "NASNetMobile"),
)
CLASSES = 10
TOLERANCE = 1e-5


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this benchmark."""
    del argv
    # Flags may come after the models.
    values.set_gnu_getopt()
    flags.DEFINE_integer("side", 224, "Side of the images.", lower_bound=32, flag_values=values)
    flags.DEFINE_integer("blocks", 4, "Number of blocks.", lower_bound=1, flag_values=values)
    flags.DEFINE_bool("export", False, "Also export and convert each tree.", flag_values=values)
    app.define_path(values, "results", None, "Also write the table to this Markdown page.")


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints the table."""
    with app.quiet_import():
        from hne_tf.evaluation import results
        from hne_tf.evaluation.tables import aligned

    rows = [
        _measured(name, values.side, values.blocks, values.export) for name in positional or MODELS
    ]
    titles = (
        *("model", "10^6 multiply-adds", "blocks / mean", "numbers kept", "cut at"),
        *("time / model's", "difference"),
        *(("SavedModel and TFLite",) if values.export else ()),
    )
    words = {"model", "blocks / mean", "numbers kept", "cut at", "SavedModel and TFLite"}
    table = aligned(titles, rows, words)
    print(table)
    if values.results:
        command = ["python", *app.command("benchmarks/cut_applications.py", values), *positional]
        page = pathlib.Path(values.results)
        results.write_page(page, "Models of keras.applications in blocks", command, table)


def _measured(name: str, side: int, blocks: int, exports: bool) -> tuple[str, ...]:
    """The row of a model."""
    import keras

    import hne_tf as hne
    from hne_tf.evaluation import cost

    make = getattr(keras.applications, name, None)
    if name not in MODELS or make is None:
        raise hne.InputError(f"models must be some of {', '.join(MODELS)}, got {name!r}")
    # The least that it takes.
    side = max(side, 71) if name == "Xception" else side
    start = time.perf_counter()
    model = make(input_shape=(side, side, 3), weights=None, classes=CLASSES)
    made = time.perf_counter() - start
    names = tuple(map(str, range(CLASSES)))
    images = hne.ImageSpec((side, side, 3), names, mean=(127.5,) * 3, std=(127.5,) * 3)
    start = time.perf_counter()
    tree = hne.TreeEnsemble.from_keras(model, (1,) * blocks, images)
    seconds = time.perf_counter() - start
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    expected = model((pixels.astype(np.float32) - 127.5) / 127.5, training=False)
    difference = float(np.abs(tree.probabilities(pixels) - np.asarray(expected)).max())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"{name} differs from its tree by {difference:.2g}")
    parts = tree.architecture.parts
    costs = [cost.part_cost(part, tree.architecture).multiply_adds for part in parts]
    verified = ("verified",) if exports else ()
    if exports:
        _export(model, images, blocks)
    keras.backend.clear_session()
    return (
        name,
        f"{sum(costs) / 1e6:.1f}",
        " ".join(f"{each / np.mean(costs):.2f}" for each in costs),
        " ".join(str(int(np.prod(part.output.shape[1:]))) for part in parts[:-1]),
        " ".join(tree.architecture.cut_at),
        f"{seconds / made:.1f}",
        f"{difference:.1g}",
        *verified,
    )


def _export(model: "keras.Model", images: "hne.ImageSpec", blocks: int) -> None:
    """Exports a tree of two leaves, and converts it; both raise if answers differ."""
    import hne_tf as hne

    tree = hne.TreeEnsemble.from_keras(
        model, (1,) * (blocks - 1) + (2,), images, perturb={blocks - 1: 0.1}
    )
    with tempfile.TemporaryDirectory() as folder:
        hne.export(tree, pathlib.Path(folder) / "tree", report=str)
        hne.convert_tflite(tree, pathlib.Path(folder) / "tree.tflite", report=str)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    return app.run("cut_applications", define_flags, main, argv, app.in_batches)


if __name__ == "__main__":
    sys.exit(run())
