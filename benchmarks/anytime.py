"""What stopping after any leaf costs, and whether deadlines are kept.

    python benchmarks/anytime.py

On one thread, on the pretrained CIFAR-10 tree and a larger random one, as SavedModel
and as TFLite file:

1. All steps together, as an `AnytimeSession` and as bare calls, against the
   ensemble's one signature, in turns of random order.
2. Runs with random deadlines between the time of the first leaf and that of all, in
   turns with walks without one: how many came back in time, and which share they
   computed of the leaves that fit. Those are counted by the medians of the walks, and
   in hindsight: each run goes on after its deadline, which shows what would have
   fitted into this very run, whatever else the machine was doing.
"""

import dataclasses
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags
from scipy import special

from hne_tf.bin import app

if TYPE_CHECKING:
    from hne_tf.exported.model import ExportedModel

# What a deadline may be overrun by, and the least of the leaves that fit.
_GRACE = 1.1
_LEAST_SHARE = 0.8


@dataclasses.dataclass(frozen=True)
class Model:
    """A model in one form.

    Attributes:
      name: of its row in the tables.
      exported: the model.
      leaf_logits: images to logits `[batch, leaves, classes]`, by the live model.
    """

    name: str
    exported: "ExportedModel"
    leaf_logits: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Stop:
    """A run with a deadline.

    Attributes:
      deadline_ms: what it was given.
      elapsed_ms: what it took.
      size: leaves it computed.
      missed: leaves more that would have fitted, as going on showed.
      right: whether its answer was that of the ensemble of that size.
    """

    deadline_ms: float
    elapsed_ms: float
    size: int
    missed: int
    right: bool


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this benchmark."""
    del argv
    flags.DEFINE_integer("rounds", 100, "Timed calls of each.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("runs", 200, "Runs with a deadline.", lower_bound=1, flag_values=values)
    app.define_path(values, "results", None, "Also write the tables to this Markdown page.")


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints the tables."""
    app.reject_positional(positional)
    with app.quiet_import():
        import tensorflow as tf

        from hne_tf.evaluation import results
        from hne_tf.evaluation.tables import aligned
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        saved, lite, large_saved, large_lite = _models(pathlib.Path(folder))
        text = "\n".join(
            [
                aligned(
                    ["model", "batch", "one shot (ms)", "bare steps", "session", "bar"],
                    [
                        _cost_row(saved, 16, values.rounds, bar="1.35"),
                        _cost_row(lite, 1, values.rounds, bar="1.50"),
                        _cost_row(saved, 1, values.rounds),
                        _cost_row(lite, 16, values.rounds),
                        *(
                            _cost_row(model, batch_size, values.rounds)
                            for model in (large_saved, large_lite)
                            for batch_size in (1, 16)
                        ),
                    ],
                    words={"model"},
                ),
                "\nMedians; steps and session as multiples of the one shot.\n",
                aligned(
                    ["model", "batch", "leaves (ms)", "in time", "share", "in hindsight", "right"],
                    [
                        _deadline_row(model, batch_size, values.runs)
                        for model in (saved, lite)
                        for batch_size in (1, 16)
                    ],
                    words={"model"},
                ),
                f"\n{values.runs} runs each, with deadlines between the times of the first and the "
                "last leaf. In time: within the deadline and a tenth of it, bar 95%. Share: leaves "
                "computed of those that fit, as least, mean, and number of runs below the bar of "
                "80%. Right: within 1e-4 of the ensemble of that size.",
            ]
        )
    print(text)
    if values.results:
        command = ["python", *app.command("benchmarks/anytime.py", values)]
        results.write_page(pathlib.Path(values.results), "Stopping at any leaf", command, text)


def _cost_row(model: Model, batch_size: int, rounds: int, bar: str = "") -> list[str]:
    from hne_tf.exported import steps
    from hne_tf.exported.profiling import latency
    from hne_tf.exported.session import AnytimeSession

    images, runner = _images(model, batch_size), model.exported.steps
    calls = {
        "one shot": lambda: model.exported.predict(images),
        "bare": lambda: np.asarray(steps.walk(runner, images)[len(runner.steps)]["probabilities"]),
        "session": lambda: AnytimeSession(runner, images).run(),
    }
    timers = {name: latency.timer(call) for name, call in calls.items()}
    times = latency.take_turns(timers, rounds)
    one_shot, bare, session = (np.median(times[name]) for name in calls)
    ratios = [f"{bare / one_shot:.2f}", f"{session / one_shot:.2f}"]
    return [model.name, str(batch_size), f"{one_shot:.2f}", *ratios, bar]


def _deadline_row(model: Model, batch_size: int, runs: int) -> list[str]:
    from hne_tf.exported.session import AnytimeSession

    images, runner = _images(model, batch_size), model.exported.steps
    logits = model.leaf_logits(images)
    model.exported.warm_up(batch_size)
    walks = [_leaf_times_ms(AnytimeSession(runner, images)) for _ in range(30)]
    first, *_, last = np.median(walks, axis=0)
    draw = random.Random(0)
    stops = []
    for _ in range(runs):
        deadline_ms = draw.uniform(first, last)
        session = model.exported.session(images)
        answer = session.run(deadline_ms=deadline_ms)
        later = answer.elapsed_ms + np.array(_leaf_times_ms(session))
        size = int(answer.sizes[0])
        right = np.allclose(answer.probabilities, _expected(logits, size), rtol=0, atol=1e-4)
        missed = int(np.sum(later <= deadline_ms))
        stops.append(Stop(deadline_ms, answer.elapsed_ms, size, missed, right))
        walks.append(_leaf_times_ms(AnytimeSession(runner, images)))
    leaf_times_ms = np.median(walks, axis=0)
    in_time = np.mean([stop.elapsed_ms <= _GRACE * stop.deadline_ms for stop in stops])
    shares = [stop.size / max(1, np.sum(leaf_times_ms <= stop.deadline_ms)) for stop in stops]
    hindsight = [stop.size / (stop.size + stop.missed) for stop in stops]
    return [
        model.name,
        str(batch_size),
        f"{leaf_times_ms[0]:.2f} to {leaf_times_ms[-1]:.2f}",
        f"{in_time:.1%}",
        _shares(shares),
        _shares(hindsight),
        f"{np.mean([stop.right for stop in stops]):.0%}",
    ]


def _shares(shares: Sequence[float]) -> str:
    below = sum(share < _LEAST_SHARE for share in shares)
    return f"{min(shares):.0%}, {np.mean(shares):.0%}, {below}"


def _leaf_times_ms(session) -> list[float]:
    """When the answer of each leaf was there that a session had left."""
    started = time.perf_counter()
    return [1000 * (time.perf_counter() - started) for _ in session]


def _images(model: Model, batch_size: int) -> np.ndarray:
    shape = (batch_size, *model.exported.image_shape)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _expected(leaf_logits: np.ndarray, size: int) -> np.ndarray:
    return special.softmax(leaf_logits[:, :size].mean(axis=1), axis=-1)


def _models(folder: pathlib.Path) -> Iterator[Model]:
    """The pretrained tree and a random one, each as SavedModel and as TFLite file."""
    import keras

    import hne_tf
    from hne_tf.models.architectures import ResNet
    from hne_tf.models.ensemble import TreeEnsemble
    from hne_tf.models.layers.deploy import DeployLayers
    from hne_tf.tree import Tree

    pretrained = hne_tf.from_pretrained("cifar10_cpu", deploy=True)
    keras.utils.set_random_seed(0)
    tree = Tree((1, 2, 2, 2, 2))
    large = TreeEnsemble(ResNet.presets["small"], tree, pretrained.images, DeployLayers())
    yield from _exported(pretrained, "cifar10_cpu, N = 8", folder / "pretrained")
    yield from _exported(large, "small preset, N = 16", folder / "large")


def _exported(model, name: str, folder: pathlib.Path) -> Iterator[Model]:
    import tensorflow as tf

    from hne_tf.export import signatures
    from hne_tf.exported import tflite_file
    from hne_tf.exported.manifest import Manifest
    from hne_tf.exported.model import load
    from hne_tf.exported.saved_model import SavedModel

    def leaf_logits(images: np.ndarray) -> np.ndarray:
        return model(images, training=False).numpy()

    leaves = model.tree.leaves
    signatures.save(signatures.signatures(model, [leaves]), str(folder))
    manifest = Manifest.of_tree(
        model.tree, name, model.images.class_names, model.images.shape, sizes=[leaves]
    )
    yield Model(f"SavedModel, {name}", SavedModel(folder, manifest), leaf_logits)
    keys = [f"ensemble_{leaves}", *(step.signature for step in manifest.steps)]
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=keys)
    path = folder / "model.tflite"
    tflite_file.write(path, converter.convert(), manifest)
    yield Model(f"TFLite, {name}", load(path, threads=1), leaf_logits)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    return app.run("anytime", define_flags, main, argv, app.in_calls)


if __name__ == "__main__":
    sys.exit(run())
