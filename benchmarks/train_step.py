"""Cost of a training step of the tree, however it is computed, against its multiply-adds.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --only=grouped,float32,1   # some of the rows

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
"""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from multiprocessing import managers

import numpy as np
from absl import flags

from hne_tf import hardware
from hne_tf.bin import app
from hne_tf.errors import InputError

SINGLE, TREE = (1, 1, 1, 1, 1), (1, 2, 2, 2, 2)
AXES = (
    ("branched", "grouped"),
    ("fused", "composed"),
    ("float32", "bfloat16"),
    ("1", "2"),
)
WITHOUT_ONEDNN = "without oneDNN"
# What the default row is also measured with.
BESIDES = {
    "batch in 4 parts": {"training.accumulate_steps": 4},
    "averaged weights": {"training.ema_momentum": 0.999},
    "all cores an operation": {"distribution.operation_threads": os.cpu_count()},
    WITHOUT_ONEDNN: {},
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A way to compute a network's step, in the words of `AXES`, and one of `BESIDES` or none."""

    factory: str
    norms: str
    precision: str
    devices: str
    branching: tuple[int, ...] = TREE
    besides: str = ""


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


def _take_turns(rows: Sequence[Row], batch_size: int, rounds: int) -> dict[Row, "Seconds"]:
    """What each row takes."""
    # Processes on one GPU must leave each other memory.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with contextlib.ExitStack() as stack:
        steps = {}
        for row in rows:
            process = stack.enter_context(_Process(ctx=multiprocessing.get_context("spawn")))
            steps[row] = process.TimedStep(row, batch_size)
        seconds = {row: [] for row in rows}
        for _ in range(rounds):
            for row, step in steps.items():
                seconds[row].append(step.seconds())
        return {
            row: Seconds(steps[row].seconds_to_first(), float(np.median(values)))
            for row, values in seconds.items()
        }


@dataclasses.dataclass(frozen=True)
class Seconds:
    """To the first step, and of a later one."""

    first: float
    step: float


class TimedStep:
    """The training step of a row's network, on images made up."""

    def __init__(self, row: Row, batch_size: int) -> None:
        started = time.perf_counter()
        # Rows differ in this whatever the environment says.
        os.environ[hardware.ONEDNN_VARIABLE] = str(int(row.besides != WITHOUT_ONEDNN))
        with app.quiet_import():
            import tensorflow as tf

            from hne_tf.training.config import default
            from hne_tf.training.machines.cluster import Cluster
            from hne_tf.training.machines.devices import strategy_of, use_best_threads
            from hne_tf.training.run import TrainingRun
            from hne_tf.training.schedule import Schedule

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
        use_best_threads(config)
        strategy = strategy_of(config, Cluster())
        self._run = TrainingRun(config, _cifar(), Schedule.of(config, 50_000), strategy)
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (batch_size, 32, 32, 3)).astype(np.uint8)
        labels = random.integers(0, 10, batch_size).astype(np.int32)
        batch = tf.data.Dataset.from_tensors((images, labels)).repeat()
        self._batches = iter(strategy.experimental_distribute_dataset(batch))
        # Traced here.
        self.seconds()
        self._to_first = time.perf_counter() - started

    def seconds(self) -> float:
        """Takes a step, and as long as it takes."""
        started = time.perf_counter()
        self._run.take_steps(self._batches, 1)
        return time.perf_counter() - started

    def seconds_to_first(self) -> float:
        """From the beginning of the process to the end of the first step."""
        return self._to_first


class _Process(managers.BaseManager):
    """A process that computes one row: TensorFlow's devices and threads are a process's own."""


_Process.register("TimedStep", TimedStep)


def _cifar():
    from hne_tf.image_spec import ImageSpec

    return ImageSpec((32, 32, 3), tuple("0123456789"), (125.0,) * 3, (63.0,) * 3)


def _multiply_adds(branching: tuple[int, ...]) -> int:
    from hne_tf.evaluation import cost
    from hne_tf.models.architectures import ResNet
    from hne_tf.models.ensemble import TreeEnsemble
    from hne_tf.models.layers.deploy import DeployLayers
    from hne_tf.tree import Tree

    tree = Tree(branching)
    model = TreeEnsemble(ResNet.presets["small"], tree, _cifar(), DeployLayers())
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
        network = "tree, N = 16" + (" (the default)" if row == default else "")
        rows.append(cells(network, row, taken, alone.step * ratio))
    table = aligned(header, rows, words)
    return f"{table}\n\nThe tree has {ratio:.2f} times the multiply-adds."


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    return app.run("train_step", define_flags, main, argv)


if __name__ == "__main__":
    sys.exit(run())
