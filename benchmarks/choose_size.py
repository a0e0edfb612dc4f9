"""Time that choosing an ensemble size costs a client.

    python benchmarks/choose_size.py

Sixteen sizes whose windows are full. A choice is timed alone, and together with all
that its request costs the estimates: the note that it was sent, its answer, and the
percentiles brought up to date. One thread, no server.
"""

import pathlib
import random
import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import flags

from hne_tf.bin import app
from hne_tf.client.latency.latencies import Latencies
from hne_tf.evaluation.tables import aligned

_SIZES = tuple(range(1, 17))
_FULL_MS = 20.0


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this benchmark."""
    del argv
    flags.DEFINE_integer("rounds", 20_000, "Timed requests.", lower_bound=1, flag_values=values)
    app.define_path(values, "results", None, "Also write the table to this Markdown page.")


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints the table."""
    app.reject_positional(positional)
    times = _times_us(values.rounds)
    rows = [
        [name, f"{np.mean(us):.1f}", *(f"{each:.1f}" for each in np.percentile(us, [50, 99]))]
        for name, us in times.items()
    ]
    table = aligned(["cost", "mean (µs)", "p50 (µs)", "p99 (µs)"], rows, words={"cost"})
    print(table)
    if values.results:
        with app.quiet_import():
            from hne_tf.evaluation import results
        command = ["python", *app.command("benchmarks/choose_size.py", values)]
        results.write_page(pathlib.Path(values.results), "Choosing a size", command, table)


def _times_us(rounds: int) -> dict[str, list[float]]:
    """Microseconds per request, with a clock that the answers' latencies move on."""
    now = 0.0
    latencies = Latencies(clock=lambda: now)
    latencies.set_sizes(_SIZES)
    noise = random.Random(0)

    def answer(size: int) -> float:
        nonlocal now
        started = time.perf_counter()
        ticket = latencies.sent(size, 1)
        sent = time.perf_counter() - started
        # Windows of time stay full: 64 answers of each size in the four seconds that count.
        now += 0.003 * noise.lognormvariate(0, 0.2) * size / 16
        started = time.perf_counter()
        latencies.answered(ticket)
        return sent + time.perf_counter() - started

    for _ in range(64):
        for size in _SIZES:
            answer(size)
    times: dict[str, list[float]] = {"choice": [], "choice, sending, answer": []}
    for _ in range(rounds):
        budget_ms = noise.uniform(0.0, _FULL_MS)
        started = time.perf_counter()
        latencies.choose(1, budget_ms)
        chosen = time.perf_counter() - started
        noted = answer(noise.choice(_SIZES))
        times["choice"].append(1e6 * chosen)
        times["choice, sending, answer"].append(1e6 * (chosen + noted))
    return times


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    return app.run("choose_size", define_flags, main, argv)


if __name__ == "__main__":
    sys.exit(run())
