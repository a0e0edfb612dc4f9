"""Cost of a training step of the tree, however it is computed, against its multiply-adds.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --only=grouped,float32,1   # some of the rows
    python benchmarks/train_step.py --peers                    # beside PyTorch and JAX

Times a step of the N = 16 bottleneck tree, branched and grouped, with TensorFlow's
fused batch norms and with Keras's, in float32 and bfloat16; on two devices (logical
ones that share the CPU, or all GPUs) with fused norms in float32 only. The default row
is also taken with its batch in parts, with averaged weights, with all cores for every
operation, and without oneDNN, with which all other rows compute. Each row runs in a
process of its own, as a training would, of up to 1.6 GB on one device; they take their
steps in turns. Ten minutes on 2 cores, most of it tracing.

Were time proportional to multiply-adds, the tree's step would take that of the single
network (1, 1, 1, 1, 1) with the default row's settings times the ratio of their
multiply-adds; the last column is the measured share of that. The first step is counted
from where a process begins to load TensorFlow: building and tracing the network is in it.

With `--peers` the same network takes its steps, in float32 on one device, in PyTorch too
(`torch_tree.py`, a convolution a node or a grouped one a block; each as it is, with one thread
and with torch.compile) and as `KERAS_BACKEND=jax hne-train` takes them, where these are
installed. Network, images, loss, weight decay and momentum are alike; ours count right answers
besides. A row that fails is left out, with a line that says why. Compiling takes minutes.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import itertools
import multiprocessing
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import managers

import ml_collections
import numpy as np
from absl import flags

from hne_tf import hardware
from hne_tf.bin import app
from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec

SINGLE, TREE = (1, 1, 1, 1, 1), (1, 2, 2, 2, 2)
OURS, TORCH, JAX = "TensorFlow", "PyTorch", "Keras on JAX"
PACKAGES = {TORCH: "torch", JAX: "jax"}
COMPILED, ONE_THREAD = "torch.compile", "one thread"
WITHOUT_ONEDNN = "without oneDNN"
# What the default row is also measured with.
BESIDES = {
    "batch in 4 parts": {"training.accumulate_steps": 4},
    "averaged weights": {"training.ema_momentum": 0.999},
    "all cores an operation": {"distribution.operation_threads": os.cpu_count()},
    WITHOUT_ONEDNN: {},
}
IMAGES = ImageSpec((32, 32, 3), tuple("0123456789"), (125.0,) * 3, (63.0,) * 3)
AXES = (
    ("branched", "grouped"),
    ("fused", "composed"),
    ("float32", "bfloat16"),
    ("1", "2"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A way to compute a network's step.

    Attributes:
      factory: branched or grouped.
      norms: fused or composed.
      precision: float32 or bfloat16.
      devices: their number.
      branching: of the tree.
      besides: one of `BESIDES`, `COMPILED`, `ONE_THREAD` or nothing.
      library: what computes it, `OURS`, `TORCH` or `JAX`.
    """

    factory: str
    norms: str
    precision: str
    devices: str
    branching: tuple[int, ...] = TREE
    besides: str = ""
    library: str = OURS

    def __str__(self) -> str:
        words = (self.library, self.factory, self.norms, self.precision, self.besides)
        return ", ".join(filter(None, words))


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this benchmark."""
    del argv
    flags.DEFINE_integer("batch_size", 32, "Images per step.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("rounds", 5, "Timed steps of each.", lower_bound=1, flag_values=values)
    flags.DEFINE_list(
        "only",
        [],
        "Rows with these words, some or none of each kind: branched, grouped; fused, "
        "composed; float32, bfloat16; 1, 2.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "peers", False, "Also PyTorch and JAX, where they are installed.", flag_values=values
    )
    app.define_path(values, "results", None, "Also write the table to this Markdown page.")


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints the table."""
    app.reject_positional(positional)
    rows = _rows(values.only)
    with app.quiet_import():
        from hne_tf.evaluation import results
        from hne_tf.training.machines.devices import accelerated

    default = Row("grouped" if accelerated() else "branched", "fused", "float32", "1")
    single = dataclasses.replace(default, branching=SINGLE)
    if default in rows:
        rows += [dataclasses.replace(default, besides=each) for each in BESIDES]
    if values.peers:
        rows += _peers(values.only)
    seconds = _take_turns([single, *rows], values.batch_size, values.rounds)
    table = _table(seconds, single, default, values.batch_size)
    print(table)
    if values.results:
        command = ["python", *app.command("benchmarks/train_step.py", values)]
        results.write_page(pathlib.Path(values.results), "Cost of a training step", command, table)


def _rows(only: Sequence[str]) -> list[Row]:
    """The rows that have the words asked for; of two devices, those with default layers.

    Raises:
      InputError: for a word that no row has, or words that no row has together.
    """
    words = list(itertools.chain(*AXES))
    for word in only:
        if word not in words:
            raise InputError(f"--only takes some of {', '.join(words)}, got {word!r}")
    kept = [[word for word in axis if word in only] or axis for axis in AXES]
    rows = [Row(*choice) for choice in itertools.product(*kept)]
    rows = [
        row
        for row in rows
        if row.devices == "1" or (row.norms, row.precision) == ("fused", "float32")
    ]
    if not rows:
        raise InputError(f"--only must leave a row to measure, got {','.join(only)}")
    return rows


def _peers(only: Sequence[str]) -> list[Row]:
    """The tree's rows in other libraries that are installed, if they have the words asked for."""
    rows = []
    for library, norms, ways in (
        (TORCH, "fused", ("", ONE_THREAD, COMPILED)),
        (JAX, "composed", ("",)),
    ):
        package = PACKAGES[library]
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed: rows of {library} are left out", flush=True)
            continue
        for factory, way in itertools.product(AXES[0], ways):
            row = Row(factory, norms, "float32", "1", TREE, way, library)
            words = zip((factory, norms, "float32", "1"), AXES, strict=True)
            if all(word in only or not {*axis} & {*only} for word, axis in words):
                rows.append(row)
    return rows


def _take_turns(rows: Sequence[Row], batch_size: int, rounds: int) -> dict[Row, "Seconds"]:
    """What each row takes, without those of other libraries that fail."""
    # Processes on one GPU must leave each other memory.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with contextlib.ExitStack() as stack:
        steps = {}
        for row in rows:
            context = multiprocessing.get_context("spawn")
            process = stack.enter_context(_Process(ctx=context))
            try:
                steps[row] = process.TimedStep(row, batch_size)
            except managers.RemoteError as error:
                if row.library == OURS:
                    raise
                print(f"{row} failed: {_reason(str(error))}", flush=True)
        seconds = {row: [] for row in steps}
        for _ in range(rounds):
            for row, step in steps.items():
                seconds[row].append(step.seconds())
        return {
            row: Seconds(steps[row].seconds_to_first(), float(np.median(values)))
            for row, values in seconds.items()
        }


def _reason(traceback: str) -> str:
    """The line of a traceback that names the error."""
    named = re.findall(r"^[\w.]*(?:Error|Exception|Failed)\b.*", traceback, re.MULTILINE)
    return named[-1] if named else traceback.strip().splitlines()[-1]


@dataclasses.dataclass(frozen=True)
class Seconds:
    """To the first step, and of a later one."""

    first: float
    step: float


class TimedStep:
    """The training step of a row's network, on images made up.

    Args:
      row: what to compute.
      batch_size: images per step.
    """

    def __init__(self, row: Row, batch_size: int) -> None:
        started = time.perf_counter()
        self._step = _step(row, batch_size)
        # Traced or compiled here.
        self._step()
        self._to_first = time.perf_counter() - started

    def seconds(self) -> float:
        """Takes a step, and as long as it takes."""
        started = time.perf_counter()
        self._step()
        return time.perf_counter() - started

    def seconds_to_first(self) -> float:
        """From the beginning of the process to the end of the first step."""
        return self._to_first


class _Process(managers.BaseManager):
    """A process that computes one row."""


_Process.register("TimedStep", TimedStep)


def _step(row: Row, batch_size: int) -> Callable[[], object]:
    """What takes a step of a row, in the library that it names."""
    if row.library == OURS:
        return _tensorflow_step(row, batch_size)
    # A script beside this one, which only finds it as a script.
    import peer_steps

    batch = _batch(batch_size)
    if row.library == JAX:
        return peer_steps.jax_step(_config(row, batch_size), IMAGES, batch)
    threads = 1 if row.besides == ONE_THREAD else 0
    compiled = row.besides == COMPILED
    return peer_steps.torch_step(_config(row, batch_size), IMAGES, batch, threads, compiled)


def _tensorflow_step(row: Row, batch_size: int) -> Callable[[], object]:
    hardware.keep_freed_memory()
    # Rows differ in this whatever the environment says.
    os.environ[hardware.ONEDNN_VARIABLE] = str(int(row.besides != WITHOUT_ONEDNN))
    with app.quiet_import():
        import tensorflow as tf

        from hne_tf.training.machines.cluster import Cluster
        from hne_tf.training.machines.devices import strategy_of, use_best_threads
        from hne_tf.training.run import TrainingRun
        from hne_tf.training.schedule import Schedule

    config = _config(row, batch_size)
    use_best_threads(config)
    strategy = strategy_of(config, Cluster())
    run = TrainingRun(config, IMAGES, Schedule.of(config, 50_000), strategy)
    batch = tf.data.Dataset.from_tensors(_batch(batch_size)).repeat()
    batches = iter(strategy.experimental_distribute_dataset(batch))
    return lambda: run.take_steps(batches, 1)


def _config(row: Row, batch_size: int) -> ml_collections.ConfigDict:
    """The settings of a row."""
    from hne_tf.training.config import default

    config = default()
    config.update_from_flattened_dict(
        {
            "model.branching": row.branching,
            "training.batch_size": batch_size,
            "training.factory": row.factory,
            "training.fused_norm": "on" if row.norms == "fused" else "off",
            "training.precision": row.precision,
            "distribution.logical_devices": int(row.devices),
            "distribution.synchronized_norm": "off",
            **BESIDES.get(row.besides, {}),
        }
    )
    return config


def _batch(batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels made up."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size, *IMAGES.shape)).astype(np.uint8)
    return images, random.integers(0, 10, batch_size).astype(np.int32)


def _multiply_adds(branching: tuple[int, ...]) -> int:
    from hne_tf.evaluation import cost
    from hne_tf.models.architectures import ResNet
    from hne_tf.models.ensemble import TreeEnsemble
    from hne_tf.models.layers.deploy import DeployLayers
    from hne_tf.tree import Tree

    tree = Tree(branching)
    model = TreeEnsemble(ResNet.presets["small"], tree, IMAGES, DeployLayers())
    return cost.per_size(model, [tree.leaves])[tree.leaves].multiply_adds


def _table(seconds: dict[Row, Seconds], single: Row, default: Row, batch_size: int) -> str:
    """Markdown: the single network, then the tree's rows, fastest first."""
    from hne_tf.evaluation.tables import aligned

    alone = seconds.pop(single)
    ratio = _multiply_adds(TREE) / _multiply_adds(SINGLE)
    words = ["network", "layers", "norms", "precision", "besides"]
    header = [*words, "devices", "first step (s)", "step (ms)", "images/s"]
    header += ["share of predicted time"]

    def cells(network: str, row: Row, taken: Seconds, predicted_s: float) -> list[str]:
        described = [network, row.factory, row.norms, row.precision, row.besides, row.devices]
        figures = [
            f"{taken.first:.1f}",
            f"{1000 * taken.step:.0f}",
            f"{batch_size / taken.step:.0f}",
        ]
        return [*described, *figures, f"{taken.step / predicted_s:.3f}"]

    rows = [cells("single network", single, alone, alone.step)]
    for row, taken in sorted(seconds.items(), key=lambda item: item[1].step):
        network = "tree, N = 16" if row.library == OURS else f"the same in {row.library}"
        network += " (the default)" if row == default else ""
        rows.append(cells(network, row, taken, alone.step * ratio))
    table = aligned(header, rows, words)
    compared = {PACKAGES[row.library]: None for row in seconds if row.library != OURS}
    versions = "".join(f" {name} {importlib.metadata.version(name)}." for name in compared)
    return f"{table}\n\nThe tree has {ratio:.2f} times the multiply-adds.{versions}"


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    return app.run("train_step", define_flags, main, argv)


if __name__ == "__main__":
    sys.exit(run())
