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
from typing import Any

import numpy as np
from absl import flags
from scipy import special

from hne_tf.bin import app

_WARM_UP = 10
# What a deadline may be overrun by, and the least of the leaves that fit.
_GRACE = 1.1
_LEAST_SHARE = 0.8


@dataclasses.dataclass(frozen=True)
class Model:
    """A model in one form.

    Attributes:
      name: of its row in the tables.
      runner: its steps.
      one_shot: images to the probabilities of the full ensemble.
      leaf_logits: images to logits `[batch, leaves, classes]`, by the live model.
    """

    name: str
    runner: Any
    one_shot: Callable[[np.ndarray], np.ndarray]
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
    flags.DEFINE_string(
        "results", None, "Also write the tables to this Markdown page.", flag_values=values
    )


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints the tables."""
    app.reject_positional(positional)
    with app.quiet_import():
        import tensorflow as tf

        from hne_tf.evaluation import results
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        saved, lite, large_saved, large_lite = _models(pathlib.Path(folder))
        text = "\n".join(
            [
                "| model | batch | one shot (ms) | bare steps | session | bar |",
                "| :--- | ---: | ---: | ---: | ---: | ---: |",
                _cost_row(saved, 16, values.rounds, bar="1.35"),
                _cost_row(lite, 1, values.rounds, bar="1.50"),
                _cost_row(saved, 1, values.rounds),
                _cost_row(lite, 16, values.rounds),
                *(
                    _cost_row(model, batch_size, values.rounds)
                    for model in (large_saved, large_lite)
                    for batch_size in (1, 16)
                ),
                "\nMedians; steps and session as multiples of the one shot.\n",
                "| model | batch | leaves (ms) | in time | share | in hindsight | right |",
                "| :--- | ---: | ---: | ---: | ---: | ---: | ---: |",
                *(
                    _deadline_row(model, batch_size, values.runs)
                    for model in (saved, lite)
                    for batch_size in (1, 16)
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


def _cost_row(model: Model, batch_size: int, rounds: int, bar: str = "") -> str:
    from hne_tf.exported.session import AnytimeSession

    images = _images(model, batch_size)
    calls = {
        "one shot": lambda: model.one_shot(images),
        "bare": lambda: _walk(model.runner, images),
        "session": lambda: AnytimeSession(model.runner, images).run(),
    }
    times = {name: [] for name in calls}
    order = random.Random(0)
    for turn in range(-_WARM_UP, rounds):
        for name in order.sample(list(calls), len(calls)):
            started = time.perf_counter()
            calls[name]()
            if turn >= 0:
                times[name].append(1000 * (time.perf_counter() - started))
    one_shot, bare, session = (np.median(times[name]) for name in calls)
    return (
        f"| {model.name} | {batch_size} | {one_shot:.2f} | {bare / one_shot:.2f} "
        f"| {session / one_shot:.2f} | {bar} |"
    )


def _walk(runner, images: np.ndarray) -> np.ndarray:
    """All steps without a session."""
    known = {"images": images}
    for step in runner.steps:
        inputs = {step["input"]: known[step["starts_from"]]}
        if step["size"] > 1:
            inputs["running_sum"] = known["running_sum"]
        known |= runner.run(step, inputs)
        probabilities = np.asarray(known["probabilities"])
    return probabilities


def _deadline_row(model: Model, batch_size: int, runs: int) -> str:
    from hne_tf.exported.session import AnytimeSession, StepTimes

    images = _images(model, batch_size)
    logits = model.leaf_logits(images)
    times = StepTimes.measure(model.runner, batch_size)
    walks = [_leaf_times_ms(AnytimeSession(model.runner, images)) for _ in range(30)]
    first, *_, last = np.median(walks, axis=0)
    draw = random.Random(0)
    stops = []
    for _ in range(runs):
        deadline_ms = draw.uniform(first, last)
        session = AnytimeSession(model.runner, images, times)
        answer = session.run(deadline_ms=deadline_ms)
        later = answer.elapsed_ms + np.array(_leaf_times_ms(session))
        size = int(answer.sizes[0])
        right = np.allclose(answer.probabilities, _expected(logits, size), rtol=0, atol=1e-4)
        missed = int(np.sum(later <= deadline_ms))
        stops.append(Stop(deadline_ms, answer.elapsed_ms, size, missed, right))
        walks.append(_leaf_times_ms(AnytimeSession(model.runner, images)))
    leaf_times_ms = np.median(walks, axis=0)
    in_time = np.mean([stop.elapsed_ms <= _GRACE * stop.deadline_ms for stop in stops])
    shares = [stop.size / max(1, np.sum(leaf_times_ms <= stop.deadline_ms)) for stop in stops]
    hindsight = [stop.size / (stop.size + stop.missed) for stop in stops]
    return (
        f"| {model.name} | {batch_size} | {leaf_times_ms[0]:.2f} to {leaf_times_ms[-1]:.2f} "
        f"| {in_time:.1%} | {_shares(shares)} | {_shares(hindsight)} "
        f"| {np.mean([stop.right for stop in stops]):.0%} |"
    )


def _shares(shares: Sequence[float]) -> str:
    below = sum(share < _LEAST_SHARE for share in shares)
    return f"{min(shares):.0%}, {np.mean(shares):.0%}, {below}"


def _leaf_times_ms(session) -> list[float]:
    """When the answer of each leaf was there that a session had left."""
    started = time.perf_counter()
    return [1000 * (time.perf_counter() - started) for _ in session]


def _images(model: Model, batch_size: int) -> np.ndarray:
    shape = (batch_size, *model.runner.image_shape)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _expected(leaf_logits: np.ndarray, size: int) -> np.ndarray:
    return special.softmax(leaf_logits[:, :size].mean(axis=1), axis=-1)


def _models(folder: pathlib.Path) -> Iterator[Model]:
    """The pretrained tree and a random one, each as SavedModel and as TFLite file."""
    import keras

    import hne_tf
    from hne_tf.models.architectures.resnet import PRESETS
    from hne_tf.models.ensemble import TreeEnsemble
    from hne_tf.models.layers.factory import DeployLayers
    from hne_tf.tree import Tree

    pretrained = hne_tf.from_pretrained("cifar10_cpu", deploy=True)
    keras.utils.set_random_seed(0)
    tree = Tree((1, 2, 2, 2, 2))
    large = TreeEnsemble(PRESETS["small"], tree, DeployLayers(), pretrained.images)
    yield from _exported(pretrained, "cifar10_cpu, N = 8", folder / "pretrained")
    yield from _exported(large, "small preset, N = 16", folder / "large")


def _exported(model, name: str, folder: pathlib.Path) -> Iterator[Model]:
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    from hne_tf.export import signatures
    from hne_tf.exported import steps, tflite_file
    from hne_tf.exported.manifest import FORMAT, MANIFEST
    from hne_tf.files import write_json

    def leaf_logits(images: np.ndarray) -> np.ndarray:
        return model(images, training=False).numpy()

    endpoints = signatures.signatures(model, [model.tree.leaves], "logits")
    signatures.save(endpoints, str(folder))
    live = steps.LiveSteps(model)
    description = {
        "format": FORMAT,
        "input": {"shape": [None, *live.image_shape]},
        "classes": live.class_names,
        "steps": live.steps,
    }
    (folder / MANIFEST).parent.mkdir()
    write_json(folder / MANIFEST, description)
    full = f"ensemble_{model.tree.leaves}"
    loaded = tf.saved_model.load(str(folder))
    yield Model(
        f"SavedModel, {name}",
        steps.load(folder),
        lambda images: loaded.signatures[full](images=tf.constant(images))["probabilities"].numpy(),
        leaf_logits,
    )
    keys = [full, *(step["signature"] for step in live.steps)]
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=keys)
    path = folder / "model.tflite"
    tflite_file.write(path, converter.convert(), description)
    one_shot = Interpreter(str(path), num_threads=1).get_signature_runner(full)
    yield Model(
        f"TFLite, {name}",
        steps.load(path, threads=1),
        lambda images: one_shot(images=images)["probabilities"],
        leaf_logits,
    )


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    return app.run("anytime", define_flags, main, argv, app.in_calls)


if __name__ == "__main__":
    sys.exit(run())
