"""What a training step of each group of a sweep takes, beside that of its reference.

    python benchmarks/group_steps.py --config=configs/sweeps/objectives_cifar10.py

Groups train on the first batches of their data, each in a process of its own, and take
their steps in turns: the ratio is of medians, so that what else the machine does weighs
on all alike. About a minute a group to start, then seconds a round, on 2 cores.
"""

import contextlib
import itertools
import multiprocessing
import pathlib
import sys
import time
from collections.abc import Sequence
from multiprocessing import managers
from typing import Any

import ml_collections
import numpy as np
from absl import flags

from hne_tf import hardware
from hne_tf.bin import app, config_file
from hne_tf.errors import InputError
from hne_tf.sweeps import plan


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this benchmark."""
    config_file.define(
        values, argv, "Config file of the sweep, e.g. configs/sweeps/objectives_cifar10.py."
    )
    flags.DEFINE_integer("rounds", 15, "Timed steps of each.", lower_bound=1, flag_values=values)
    app.define_path(values, "results", None, "Also write the table to this Markdown page.")
    flags.mark_flag_as_required("config", values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints the table."""
    app.reject_positional(positional)
    sweep = plan.parse(ml_collections.ConfigDict(values.config))
    if not sweep.reference:
        raise InputError("--config must be a sweep with a reference, got one without")
    with app.quiet_import():
        from hne_tf.evaluation import results
    configs = {run.group: run.config.to_dict() for run in sweep.runs if run.seed == sweep.seeds[0]}
    table = _table(_take_turns(configs, values.rounds), sweep.reference)
    print(table)
    if values.results:
        command = ["python", *app.command("benchmarks/group_steps.py", values)]
        title = f"Cost of a step: {sweep.title}"
        results.write_page(pathlib.Path(values.results), title, command, table)


class TimedStep:
    """The training step of a run, on the first batches of its data."""

    def __init__(self, settings: dict[str, Any]) -> None:
        hardware.keep_freed_memory()
        with app.quiet_import():
            from hne_tf.data import load
            from hne_tf.training.config import from_json
            from hne_tf.training.machines.cluster import Cluster
            from hne_tf.training.machines.devices import seeded, strategy_of, use_best_threads
            from hne_tf.training.run import TrainingRun
            from hne_tf.training.schedule import Schedule

        config = from_json(settings)
        use_best_threads(config)
        data_set = load(config.data)
        schedule = Schedule.of(config, data_set.examples("train"))
        with seeded(config.seed, deterministic=False):
            self._run = TrainingRun(config, data_set.spec, schedule, strategy_of(config, Cluster()))
        self._batches = self._run.batches(data_set, 0)
        # Traced here, and past what a first step makes.
        for _ in range(2):
            self.seconds()

    def seconds(self) -> float:
        """Takes a step, and as long as it takes."""
        started = time.perf_counter()
        self._run.take_steps(self._batches, 1)
        return time.perf_counter() - started


class _Process(managers.BaseManager):
    """A process that trains one group: TensorFlow's threads are a process's own."""


_Process.register("TimedStep", TimedStep)


def _take_turns(configs: dict[str, dict[str, Any]], rounds: int) -> dict[str, float]:
    """Median seconds of a step of each group."""
    with contextlib.ExitStack() as stack:
        steps = {}
        for group, config in configs.items():
            process = stack.enter_context(_Process(ctx=multiprocessing.get_context("spawn")))
            steps[group] = process.TimedStep(config)
        turns = itertools.repeat(steps, rounds)
        taken = [{group: step.seconds() for group, step in turn.items()} for turn in turns]
    return {group: float(np.median([turn[group] for turn in taken])) for group in configs}


def _table(seconds: dict[str, float], reference: str) -> str:
    """Markdown, a row per group."""
    from hne_tf.evaluation.tables import aligned

    rows = [
        [group, f"{1000 * step_s:.1f}", f"{step_s / seconds[reference]:.2f}"]
        for group, step_s in seconds.items()
    ]
    table = aligned(["group", "step (ms)", f"beside {reference}"], rows, words={"group"})
    return f"{table}\n\nMedian of a step, and its ratio to the step of {reference}."


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    return app.run("group_steps", define_flags, main, argv)


if __name__ == "__main__":
    sys.exit(run())
