"""Latency of a model's signatures on this machine.

    python -m hne_tf.exported.profiling.latency

serves `measure_together`: the number of threads of TensorFlow is a setting of the
process, so each has a process of its own. They call in turns, one at a time, so that
a busy moment of the machine hits all models, sizes and numbers of threads alike.
"""

import contextlib
import dataclasses
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from hne_tf import hardware
from hne_tf.errors import InputError
from hne_tf.exported.measurements import MeasuredLatency, Measurement
from hne_tf.exported.model import ExportedModel, load
from hne_tf.exported.session import WARM_UP_CALLS

Key = TypeVar("Key", bound=Hashable)
# Calls a signature and returns the milliseconds that it took.
Timer = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured of a model.

    Attributes:
      model: all of its ensemble sizes.
      threads: numbers of threads that compute.
    """

    model: ExportedModel
    threads: tuple[int, ...]


def measure(
    model: ExportedModel, batch_sizes: Sequence[int] = (1,), runs: int = 100
) -> MeasuredLatency:
    """Times warm calls of each ensemble size in this process, the sizes taking turns.

    Args:
      model: computed by its `threads`.
      batch_sizes: images per call.
      runs: timed calls per ensemble size and batch size.

    Raises:
      InputError: for a model that cannot be loaded.
    """
    times = take_turns(_timers(model, batch_sizes), runs)
    rows = [_measurement(*key, model.threads, values) for key, values in times.items()]
    return MeasuredLatency(hardware.describe(), tuple(rows))


def measure_together(
    subjects: Sequence[Subject], batch_sizes: Sequence[int] = (1,), runs: int = 100
) -> list[MeasuredLatency]:
    """Times warm calls of several models in turns.

    Args:
      subjects: the models.
      batch_sizes: images per call.
      runs: timed calls per model, ensemble size, batch size and number of threads.

    Returns:
      Latencies of each subject: its `measurements` are those with the model's
      `default_threads`, so that they hold a row per ensemble size and batch size.

    Raises:
      InputError: for a model that cannot be loaded or called.
    """
    timers: dict[tuple[int, int, str, int], Timer] = {}
    with contextlib.ExitStack() as stack:
        for threads in sorted({count for subject in subjects for count in subject.threads}):
            chosen = [index for index, each in enumerate(subjects) if threads in each.threads]
            worker = _worker([subjects[index].model for index in chosen], batch_sizes, threads)
            numbered = stack.enter_context(worker)
            for (position, signature, batch_size), timer in numbered.items():
                timers[chosen[position], threads, signature, batch_size] = timer
        times = take_turns(timers, runs)
    latencies = []
    for index, subject in enumerate(subjects):
        default = subject.model.default_threads
        rows = [
            _measurement(signature, batch_size, threads, values)
            for (owner, threads, signature, batch_size), values in times.items()
            if owner == index
        ]
        by_default = tuple(row for row in rows if row.threads == default)
        others = tuple(row for row in rows if row.threads != default)
        latencies.append(MeasuredLatency(hardware.describe(), by_default, others))
    return latencies


def take_turns(timers: Mapping[Key, Timer], runs: int) -> dict[Key, list[float]]:
    """Milliseconds of `runs` calls of each, after `WARM_UP_CALLS`, in turns of random order."""
    times: dict[Key, list[float]] = {key: [] for key in timers}
    order = random.Random(0)
    for turn in range(-WARM_UP_CALLS, runs):
        # What ran just before has filled the caches, so nobody always follows the same.
        for key in order.sample(list(timers), len(timers)):
            time_ms = timers[key]()
            if turn >= 0:
                times[key].append(time_ms)
    return times


def _measurement(
    signature: str, batch_size: int, threads: int, times_ms: Sequence[float]
) -> Measurement:
    p50, p95, p99 = (round(float(p), 4) for p in np.percentile(times_ms, [50, 95, 99]))
    return Measurement(signature, batch_size, len(times_ms), p50, p95, p99, threads)


def _timers(model: ExportedModel, batch_sizes: Sequence[int]) -> dict[tuple[str, int], Timer]:
    """A timer per ensemble signature and batch size, in this process."""
    timers = {}
    for batch_size, size in itertools.product(batch_sizes, model.sizes):
        name = f"ensemble_{size}"
        inputs = {"images": np.zeros([batch_size, *model.image_shape], np.uint8)}
        timers[name, batch_size] = timer(_call(model, name, inputs))
    return timers


def _call(model: ExportedModel, name: str, inputs: Mapping[str, np.ndarray]) -> Callable[[], Any]:
    signature = model.signature(name)
    return lambda: np.asarray(signature.run(inputs)["probabilities"])


def timer(call: Callable[[], Any]) -> Timer:
    """Times the second of two calls."""

    def time_ms() -> float:
        # Whoever was in turn before has filled the caches with something else.
        call()
        started = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - started)

    return time_ms


@contextlib.contextmanager
def _worker(
    models: Sequence[ExportedModel], batch_sizes: Sequence[int], threads: int
) -> Iterator[dict[tuple[int, str, int], Timer]]:
    """Timers by position of the model, signature and batch size, in another process."""
    request = {
        "threads": threads,
        "batch_sizes": list(batch_sizes),
        "models": [str(model.path) for model in models],
    }
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "hne_tf.exported.profiling.latency"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):

        def ask(value: Any) -> Any:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(value) + "\n")
                process.stdin.flush()
            if line := process.stdout.readline():
                return json.loads(line)
            process.wait()
            errors.seek(0)
            last = errors.read().strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
            raise InputError(f"models must load and answer, got {last[0]}")

        try:
            keys = [tuple(key) for key in ask(request)]
            yield {key: lambda number=number: ask(number) for number, key in enumerate(keys)}
        finally:
            # Its input ends, and so does it.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def _main() -> None:
    """Answers a request with the keys of its timers, then a number of a key with its time."""
    import tensorflow as tf

    request = json.loads(sys.stdin.readline())
    threads = request["threads"]
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    timers = {
        (position, *key): timer
        for position, path in enumerate(request["models"])
        for key, timer in _timers(_with_threads(path, threads), request["batch_sizes"]).items()
    }
    print(json.dumps(list(timers)), flush=True)
    numbered = list(timers.values())
    for line in sys.stdin:
        print(numbered[int(line)](), flush=True)


def _with_threads(path: str, threads: int) -> ExportedModel:
    model = load(path)
    return load(path, threads) if model.has_own_threads else model


if __name__ == "__main__":
    _main()
