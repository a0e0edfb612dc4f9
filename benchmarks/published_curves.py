"""Accuracy of runs on CIFAR-10 for every amount of computation, beside published networks.

    python benchmarks/published_curves.py runs/cifar10_small runs/cifar10_large --device="an H200"

Evaluates every ensemble size of each run on the test split, and tells how long training took.
`--power`, a file per run that `nvidia-smi --query-gpu=timestamp,power.draw
--format=csv,noheader -l 2` has written meanwhile, adds the energy.
"""

import json
import pathlib
import re
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from hne_tf.bin import app
from hne_tf.errors import InputError

# Percent right at millions of multiply-adds, read off the figures of Huang et al., "Multi-scale
# dense networks for resource efficient image classification", ICLR 2018, and Yang et al.,
# "Resolution adaptive networks for efficient inference", CVPR 2020.
PUBLISHED = {
    "MSDNet": {15: 89.5, 25: 90.8, 38: 91.5, 52: 92.6, 62: 93.0, 74: 93.2, 100: 93.6},
    "RANet": {16: 91.3, 45: 93.1, 95: 93.7},
}
_SECONDS_PER_SAMPLE = 2


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this benchmark."""
    del argv
    # Flags may come after the runs.
    values.set_gnu_getopt()
    app.define_path(values, "data_dir", None, "Where the data set lies, if not where it did.")
    flags.DEFINE_string("device", None, "What the runs were trained on.", flag_values=values)
    app.define_paths(values, "power", [], "A file of nvidia-smi per run, in their order.")
    app.define_path(values, "results", None, "Also write the tables to this Markdown page.")
    flags.mark_flags_as_required(["device"], values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints the tables."""
    if not positional:
        raise InputError("at least one run's folder must be given, got none")
    if values.power and len(values.power) != len(positional):
        raise InputError(f"--power must name {len(positional)} files, got {len(values.power)}")
    with app.quiet_import():
        from hne_tf.evaluation import results
        from hne_tf.evaluation.tables import aligned
        from hne_tf.training import trained
        from hne_tf.training.workdir import Workdir

    trainings, curves = [], []
    for index, path in enumerate(positional):
        workdir = Workdir(pathlib.Path(path))
        run = trained.restore(workdir, values.data_dir)
        power = pathlib.Path(values.power[index]) if values.power else None
        trainings.append((workdir.path.name, *_training(workdir, run.config, power)))
        curves += _curve(workdir.path.name, run)
    header = ("run", "epochs", "images/s", "minutes of steps", "kJ")
    body = (
        f"Trained on {values.device}; `images/s` is the median, without validation and saving.\n\n"
        f"{aligned(header, trainings, {'run'})}\n\n"
        "Percent of the test split that is answered right. Published networks are interpolated "
        "between the points of their curves, and absent outside of them.\n\n"
        + aligned(("run", "size", "10^6 multiply-adds", "accuracy", *PUBLISHED), curves, {"run"})
    )
    print(body)
    if values.results:
        command = ["python", *app.command("benchmarks/published_curves.py", values), *positional]
        page = pathlib.Path(values.results)
        results.write_page(page, "CIFAR-10 beside published networks", command, body)


def _training(workdir: Any, config: Any, power: pathlib.Path | None) -> tuple[str, ...]:
    """What training took: epochs, images per second, minutes and energy."""
    records = [json.loads(line) for line in workdir.metrics_path.read_text().splitlines()]
    batch_size = config.training.batch_size
    steps = np.diff([0, *(record["step"] for record in records)])
    speeds = [record["images_per_s"] for record in records]
    minutes = sum(steps * batch_size / np.array(speeds)) / 60
    return (
        f"{config.training.epochs:g}",
        f"{statistics.median(speeds):,.0f}",
        f"{minutes:.1f}",
        f"{_joules(power) / 1000:,.0f}" if power else "-",
    )


def _joules(power: pathlib.Path) -> float:
    """Energy of a process, from samples of the power that the card drew."""
    watts = [float(number) for number in re.findall(r"([\d.]+) W", power.read_text())]
    return _SECONDS_PER_SAMPLE * sum(watts)


def _curve(name: str, run: Any) -> list[tuple[str, ...]]:
    """A row per ensemble size."""
    measured = run.evaluate("test", sizes=range(1, run.model.tree.leaves + 1))
    return [
        (
            name,
            str(row["size"]),
            f"{row['multiply_adds'] / 1e6:.1f}",
            f"{100 * row['accuracy']:.2f}",
            *(_published(curve, row["multiply_adds"] / 1e6) for curve in PUBLISHED.values()),
        )
        for row in measured["sizes"]
    ]


def _published(curve: dict[int, float], millions: float) -> str:
    """A published network's percent right for as many multiply-adds."""
    if not min(curve) <= millions <= max(curve):
        return "-"
    return f"{np.interp(millions, list(curve), list(curve.values())):.1f}"


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("published_curves", define_flags, main, argv, app.in_batches)


if __name__ == "__main__":
    sys.exit(run())
