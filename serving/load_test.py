"""Open-loop load against a server on this machine: the full ensemble against the adaptive client.

  python -m serving.load_test --model=digits \
      --manifest=models/digits/1/assets.extra/hne_manifest.json --batch_size=32 --budget_ms=100

Requests arrive as a Poisson process whose times are drawn beforehand, so that a slow server
makes them neither fewer nor later. The fixed client always asks for the full ensemble, the
adaptive one for what fits; both see the same arrivals. Stops by itself.

Needs an extra: pip install 'hne_tf[serving]'
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from hne_tf.bin import app
from hne_tf.client.metadata import is_loopback
from hne_tf.errors import InputError

if TYPE_CHECKING:
    from serving.load import Point
    from serving.load_clients import Target
    from serving.load_runs import Runner

FACTORS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
_RUSH, _LULL = 2.0, 0.25
# With the longest time per load, a test ends within seven hours.
_MOST_LOADS = 20


def define_flags(values: flags.FlagValues, arguments: list[str]) -> None:
    """Adds the flags of this binary to `values`."""
    del arguments
    text, number, whole = flags.DEFINE_string, flags.DEFINE_float, flags.DEFINE_integer
    text(
        "target", "127.0.0.1:8500", "host:port of the server, on this machine.", flag_values=values
    )
    text("model", None, "Name of the model there.", flag_values=values)
    app.define_path(values, "manifest", None, "hne_manifest.json of the model.")
    whole("batch_size", 32, "Images per request.", lower_bound=1, flag_values=values)
    number("budget_ms", None, "Milliseconds that an answer may take.", flag_values=values)
    flags.DEFINE_list(
        "loads",
        ["auto"],
        "Requests per second, e.g. 10,20,40; auto finds the load at which the full ensemble "
        "first misses its budget for 5% of requests, and measures around it.",
        flag_values=values,
    )
    number("seconds", 60.0, "Measured per load and client.", 1.0, 600.0, flag_values=values)
    number("warm_up_s", 3.0, "Load before that, not counted.", 0.0, 60.0, flag_values=values)
    number("search_s", 20.0, "Per load while the knee is searched.", 1.0, 600.0, flag_values=values)
    number("rush_s", 10.0, "Rush before recovery is timed.", 1.0, 600.0, flag_values=values)
    whole("seed", 0, "Of the arrivals and the images.", flag_values=values)
    app.define_path(
        values,
        "results",
        None,
        "Also write this Markdown page, and its picture beside it as .png.",
    )
    flags.mark_flags_as_required(["model", "manifest", "budget_ms"], values)


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Prints the tables and writes the page."""
    app.reject_positional(arguments)
    if not is_loopback(values.target):
        raise InputError(
            f"--target must be this machine, such as 127.0.0.1:8500, got {values.target!r}: "
            "load is for servers of one's own"
        )
    if not values.budget_ms > 0:
        raise InputError(f"--budget_ms must be more than 0, got {values.budget_ms:g}")
    loads = _loads(values.loads)
    results = pathlib.Path(values.results) if values.results else None
    if results and results.suffix != ".md":
        raise InputError(f"--results must be a .md file, got {values.results!r}")
    with app.quiet_import():
        # Its extra is missed now, not after the test.
        from serving import load_report  # noqa: F401
        from serving.load_clients import Target
        from serving.load_runs import Runner

    target = Target(values.target, values.model, values.manifest, values.batch_size, values.seed)
    runner = Runner(target, values.budget_ms, values.warm_up_s, values.seed)
    alone = runner.sequential_ms((target.least, target.full))
    print(_alone(target, alone), flush=True)
    measured = _measure(runner, loads, values, alone[target.full])
    body = _body(values, measured, target, alone)
    print(body)
    if results:
        _write(results, body, measured, values)


@dataclasses.dataclass(frozen=True)
class Measured:
    """All that a test found: see `serving.load` for points, knee and recovery."""

    points: "list[Point]"
    knee: float | None
    recovered_s: float | None
    cores: float
    hurried: int


def _measure(
    runner: "Runner", loads: list[float] | None, values: flags.FlagValues, full_ms: float
) -> Measured:
    from serving import load

    knee = None
    if loads is None:
        knee = load.find_knee(lambda rate: _misses(runner, rate, values.search_s), 500 / full_ms)
        print(f"the full ensemble misses its budget for 5% of requests at {knee:.1f}/s", flush=True)
        loads = [factor * knee for factor in FACTORS]
    points = []
    for rate in loads:
        for client in ("fixed", "adaptive"):
            point = runner.point(client, rate, values.seconds)
            print(f"{client} at {rate:.1f}/s: {point.inside:.1%} inside the budget", flush=True)
            points.append(point)
    knee = knee or load.knee_between(points)
    recovered_s = runner.recovery(_RUSH * knee, _LULL * knee, values.rush_s) if knee else None
    return Measured(points, knee, recovered_s, runner.most_cores, runner.hurried)


def _misses(runner: "Runner", rate: float, seconds: float) -> float:
    """Share of misses of the fixed client; one hiccup of the machine must not pass for the knee."""
    from serving.load import MISSES_AT_KNEE

    share = 1 - runner.point("fixed", rate, seconds).inside
    if share < MISSES_AT_KNEE:
        return share
    return min(share, 1 - runner.point("fixed", rate, seconds).inside)


def _body(
    values: flags.FlagValues, measured: Measured, target: "Target", alone: dict[int, float]
) -> str:
    from serving import load, load_report

    lag_ms = max(point.lag_p99_ms for point in measured.points)
    bars = load.bars(
        measured.points,
        measured.knee,
        measured.recovered_s,
        alone[target.full] / alone[target.least],
    )
    knee = f"{measured.knee:.1f} requests per second" if measured.knee else "not reached"
    hurried = (
        f" {measured.hurried} runs began before the server was at rest from the one before."
        if measured.hurried
        else ""
    )
    return "\n\n".join(
        [
            f"{values.batch_size} images per request, a budget of {values.budget_ms:g} ms from the "
            f"scheduled arrival, {values.seconds:g} s per load and client, server and generator "
            f"on one machine. {_alone(target, alone)} "
            f"Knee, where the full ensemble first misses its budget for 5% of requests: {knee}.",
            load_report.bars_table(bars),
            load_report.table(measured.points, measured.knee),
            "Late, rejected and failed requests are shares of all arrivals; latencies are of all "
            "of them, until the answer or until it was given up. Mean size, full size and "
            "accuracy are of the answers inside the budget, the accuracy being what "
            "held-out data showed of each size; right in time is the product with the share "
            f"inside. The generator was at most {lag_ms:.1f} ms late for 99% of requests, which "
            f"counts as latency, and took up to {measured.cores:.2f} processor cores.{hurried}",
        ]
    )


def _alone(target: "Target", alone: dict[int, float]) -> str:
    least, full = target.least, target.full
    return (
        f"One request after the other takes {alone[least]:.1f} ms with the ensemble of {least} "
        f"and {alone[full]:.1f} ms with that of {full}: {alone[full] / alone[least]:.1f} times "
        "as long."
    )


def _write(results: pathlib.Path, body: str, measured: Measured, values: flags.FlagValues) -> None:
    from hne_tf.evaluation.results import write_page
    from serving import load_report

    title = "Serving under load"
    command = app.command("serving.load_test", values)
    picture = results.with_suffix(".png")
    page = f"![Both clients against the load]({picture.name})\n\n{body}"
    try:
        write_page(results, title, ["python", "-m", *command], page)
        load_report.plot(measured.points, measured.knee, values.budget_ms, title, picture)
    except OSError as error:
        raise InputError(f"--results must be writable, got {results}: {error}") from error
    print(f"written {results} and {picture}")


def _loads(texts: Sequence[str]) -> list[float] | None:
    """Returns the loads in increasing order, or None for `auto`."""
    if list(texts) == ["auto"]:
        return None
    try:
        loads = sorted({float(text) for text in texts})
    except ValueError:
        loads = []
    if not loads or not all(0 < rate < float("inf") for rate in loads):
        raise InputError(f"--loads must be auto or numbers above 0, got {','.join(texts)!r}")
    if len(loads) > _MOST_LOADS:
        raise InputError(f"--loads must be at most {_MOST_LOADS}, got {len(loads)}")
    return loads


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("load_test", define_flags, main, argv)


if __name__ == "__main__":
    sys.exit(run())
