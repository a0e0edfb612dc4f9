"""What trained weights are worth: a tree of a network of other classes, and one from scratch.

    nice python benchmarks/fine_tuning.py --root=runs/fine_tuning --data_dir=... \\
        --results=results/fine_tuning.md

A small residual network learns five classes of CIFAR-10 and is saved as a .keras file. Four-leaf
trees of it learn the other five from --images pictures: with its weights and from scratch, with
hierarchical distillation and with leaves that learn by themselves, for each of --seeds seeds. What
is in --root is not computed again. More than an hour on 2 cores.
"""

import functools
import itertools
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from hne_tf.bin import app

if TYPE_CHECKING:
    import keras

    import hne_tf as hne
    from hne_tf.data import DataSet

BASE_CLASSES, TREE_CLASSES = range(5), range(5, 10)
BRANCHING = (1, 2, 2)
WIDTHS = (24, 48, 96)
BATCH_SIZE = 64
PAD_PIXELS = 4
# With which each tree is trained.
STARTS = {"copied": True, "scratch": False}
OBJECTIVES = ("hierarchical distillation", "independent")


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this benchmark."""
    del argv
    app.define_path(values, "root", None, "Folder of the network and of each tree's figures.")
    app.define_path(values, "data_dir", None, "Where TFDS keeps its sets.")
    app.define_path(values, "results", None, "Also write the table to this Markdown page.")
    for name, value, text in (
        ("seeds", 3, "Trees of each kind."),
        ("images", 1000, "Training images of a tree."),
        ("base_epochs", 10, "Epochs of the network."),
        ("epochs", 30, "Epochs of a tree."),
    ):
        flags.DEFINE_integer(name, value, text, lower_bound=1, flag_values=values)
    flags.mark_flags_as_required(["root"], values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Trains what is missing, and prints the table."""
    app.reject_positional(positional)
    with app.quiet_import():
        import keras

        from hne_tf.evaluation import results

    root = pathlib.Path(values.root)
    root.mkdir(parents=True, exist_ok=True)
    # The page of figures that are there needs no data.
    source = functools.cache(lambda: _cifar10(values.data_dir))
    base = root / "base.keras"
    if not base.exists():
        accuracy = _train_base(_part(source(), BASE_CLASSES), values.base_epochs, base)
        _write(root / "base.json", {"accuracy": accuracy})
    rows: dict[tuple[str, str], list[list[float]]] = {}
    for seed, start, objective in itertools.product(range(values.seeds), STARTS, OBJECTIVES):
        name = f"{start}_{objective.replace(' ', '_')}_{values.images}_{values.epochs}_{seed}"
        path = root / f"{name}.json"
        if not path.exists():
            data = _part(source(), TREE_CLASSES, values.images, seed)
            began = time.perf_counter()
            accuracies = _train_tree(base, data, start, objective, values.epochs, seed)
            seconds = time.perf_counter() - began
            _write(path, {"accuracies": accuracies, "seconds": round(seconds)})
            keras.backend.clear_session()
            print(f"{name}: {accuracies}, {seconds:.0f} s", flush=True)
        rows.setdefault((start, objective), []).append(_read(path)["accuracies"])
    body = _page(rows, values, _read(root / "base.json")["accuracy"])
    print(body)
    if values.results:
        command = ["python", *app.command("benchmarks/fine_tuning.py", values)]
        page = pathlib.Path(values.results)
        results.write_page(page, "Trees of a trained network", command, body)


def _page(rows: Any, values: flags.FlagValues, base_accuracy: float) -> str:
    from hne_tf.evaluation.tables import aligned
    from hne_tf.tree import Tree

    sizes = Tree(BRANCHING).sizes
    columns = [f"{size} of {sizes[-1]} leaves" for size in sizes]
    body = [(*kind, *_by_size(runs)) for kind, runs in rows.items()]
    gains = [
        ("copied weights", objective, *_gain(rows["copied", objective], rows["scratch", objective]))
        for objective in OBJECTIVES
    ] + [
        (OBJECTIVES[0], start, *_gain(*(rows[start, objective] for objective in OBJECTIVES)))
        for start in STARTS
    ]
    return (
        f"Test accuracy in percent on five classes of CIFAR-10, {values.images} training images, "
        f"{values.epochs} epochs, mean and standard deviation of {values.seeds} seeds. A seed "
        "chooses the images, their order and fresh weights. The network that the trees are cut "
        f"from has learnt the other five classes ({100 * base_accuracy:.1f}% on them).\n\n"
        + aligned(("start", "objective", *columns), body, {"start", "objective"})
        + "\n\nWhat each brings, in points, by pairs of the same seed:\n\n"
        + aligned(("gain of", "with", *columns), gains, {"gain of", "with"})
    )


def _by_size(runs: Sequence[Sequence[float]]) -> list[str]:
    """Mean and standard deviation over runs for each size."""
    return [_mean_and_deviation(values) for values in zip(*runs, strict=True)]


def _gain(runs: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> list[str]:
    """By how much runs are ahead of others of the same seeds."""
    return _by_size(
        [
            [a - b for a, b in zip(run, other, strict=True)]
            for run, other in zip(runs, others, strict=True)
        ]
    )


def _mean_and_deviation(accuracies: Sequence[float]) -> str:
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return f"{100 * statistics.mean(accuracies):.1f} ± {100 * deviation:.1f}"


def _cifar10(data_dir: str | None) -> Any:
    from hne_tf.data import sets
    from hne_tf.training.config import default

    section = default().data
    section.name, section.data_dir = "cifar10", data_dir or ""
    return sets.find("cifar10")(section)


def _part(source: Any, classes: range, count: int = 0, seed: int = 0) -> "DataSet":
    """Some classes; `count` of their training images, as many of each class, or all."""
    import tensorflow as tf

    from hne_tf.data import DataSet, Split
    from hne_tf.data.augmentation import Augmentation
    from hne_tf.image_spec import ImageSpec

    splits = {}
    for name, (images, labels) in source.arrays.items():
        rows = [np.flatnonzero(labels == label) for label in classes]
        if count and name == "train":
            rng = np.random.default_rng(seed)
            rows = [rng.permutation(each)[: count // len(classes)] for each in rows]
        kept = np.concatenate(rows)
        pixels = tf.constant(images[kept])
        numbers = tf.constant(labels[kept] - classes.start, tf.int32)
        splits[name] = Split(numbers, lambda indices, pixels=pixels: tf.gather(pixels, indices))
    names = tuple(source.class_names[label] for label in classes)
    spec = ImageSpec(source.arrays["train"][0].shape[1:], names, *source.statistics)
    return DataSet("cifar10", spec, splits, Augmentation(PAD_PIXELS, flip=True))


def _network(shape: Sequence[int], classes: int) -> "keras.Model":
    """Three residual units of basic kind, He et al. (CVPR 2016)."""
    import keras
    from keras import layers

    def normed(x: Any, width: int, strides: int, name: str, size: int = 3) -> Any:
        x = layers.Conv2D(
            width, size, strides, padding="same", use_bias=False,
            kernel_initializer="he_normal", name=name,
        )(x)  # fmt: skip
        return layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)

    inputs = keras.Input(shape)
    x = layers.ReLU(name="stem_relu")(normed(inputs, 16, 1, "stem"))
    for unit, width in enumerate(WIDTHS):
        y = layers.ReLU(name=f"unit{unit}_inner")(normed(x, width, 2, f"unit{unit}_conv1"))
        y = normed(y, width, 1, f"unit{unit}_conv2")
        x = layers.Add(name=f"unit{unit}_add")([normed(x, width, 2, f"unit{unit}_short", 1), y])
        x = layers.ReLU(name=f"unit{unit}")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, layers.Dense(classes, name="classifier")(x), name="residual")


def _train_base(data: "DataSet", epochs: int, path: pathlib.Path) -> float:
    """Trains the network and saves it; returns its test accuracy."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    mean, std = (np.array(each, np.float32) for each in (data.spec.mean, data.spec.std))

    def normalised(images: Any, labels: Any) -> Any:
        return (tf.cast(images, tf.float32) - mean) / std, labels

    steps = epochs * data.examples("train") // BATCH_SIZE
    batches = data.train_batches(
        batch_size=BATCH_SIZE, start_step=0, total_steps=steps, seed=0
    ).map(normalised)
    model = _network(data.spec.shape, len(data.spec.class_names))
    model.compile(
        _sgd(steps, 0.1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    model.fit(batches, verbose=2)
    test = data.evaluation_batches("test", 256).map(normalised)
    accuracy = float(model.evaluate(test, verbose=0, return_dict=True)["accuracy"])
    print(f"network: {accuracy:.3f}", flush=True)
    writing = path.with_name("writing.keras")
    model.save(writing)
    writing.rename(path)
    return accuracy


def _train_tree(
    base: pathlib.Path, data: "DataSet", start: str, objective: str, epochs: int, seed: int
) -> list[float]:
    """Test accuracy of each size of a tree."""
    import keras

    import hne_tf as hne

    keras.utils.set_random_seed(seed)
    tree = hne.TreeEnsemble.from_keras(
        keras.models.load_model(base, compile=False),
        BRANCHING,
        data.spec,
        classifier="replace",
        copy_weights=STARTS[start],
    )
    batches = data.fit_batches(BATCH_SIZE, seed)
    distils = objective == OBJECTIVES[0]
    loss = hne.losses.HierarchicalDistillation() if distils else hne.losses.Independent()
    tree.compile(
        _sgd(epochs * len(batches), 0.02),
        loss=loss,
        metrics=[hne.metrics.EnsembleAccuracy()],
        jit_compile=False,
    )
    tree.fit(batches, epochs=epochs, verbose=0)
    return _accuracies(tree, data)


def _accuracies(tree: "hne.TreeEnsemble", data: "DataSet") -> list[float]:
    from hne_tf.evaluation import evaluation

    measured = evaluation.evaluate(tree, data.evaluation_batches("test", 256))
    return [row["accuracy"] for row in measured["sizes"]]


def _sgd(steps: int, rate: float) -> "keras.Optimizer":
    import keras

    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - steps // 10, warmup_target=rate, warmup_steps=steps // 10
    )
    return keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=5e-4)


def _write(path: pathlib.Path, value: Any) -> None:
    from hne_tf.files import write_json

    write_json(path, value)


def _read(path: pathlib.Path) -> Any:
    from hne_tf.files import read_json

    return read_json(path)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    return app.run("fine_tuning", define_flags, main, argv, app.in_batches)


if __name__ == "__main__":
    sys.exit(run())
