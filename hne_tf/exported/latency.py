"""Latency of a model's signatures on this machine.

    python -m hne_tf.exported.latency

serves `measure_together`: the number of threads of TensorFlow is a setting of the
process, so each has a process of its own. They call in turns, one at a time, so that
a busy moment of the machine hits all models, sizes and numbers of threads alike.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from hne_tf import hardware
from hne_tf.errors import InputError
from hne_tf.exported.session import WARM_UP_CALLS

Key = TypeVar("Key", bound=Hashable)
# Calls a signature and returns the milliseconds that it took.
Timer = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured of a model.

    Attributes:
      path: a SavedModel's folder or a `.tflite` file.
      signatures: names of signatures that take `images`.
      threads: numbers of threads that compute.
    """

    path: pathlib.Path
    signatures: tuple[str, ...]
    threads: tuple[int, ...]


def default_threads(path: pathlib.Path) -> int:
    """Threads that compute a model unless told otherwise: LiteRT takes 1, TensorFlow all."""
    return 1 if path.suffix == ".tflite" else len(os.sched_getaffinity(0))


def measure(
    path: pathlib.Path,
    signatures: Sequence[str],
    batch_sizes: Sequence[int] = (1,),
    runs: int = 100,
) -> dict[str, Any]:
    """Times warm calls of each signature in this process, the signatures taking turns.

    Args:
      path: a SavedModel's folder, computed by this process's threads, or a
        `.tflite` file.
      signatures: names of signatures that take `images`.
      batch_sizes: images per call.
      runs: timed calls per signature and batch size.

    Returns:
      `hardware` and `measurements`: rows of `signature`, `batch_size`, `threads`,
      `runs`, `p50_ms`, `p95_ms` and `p99_ms`.
    """
    threads = default_threads(path)
    if path.suffix != ".tflite":
        threads = tf.config.threading.get_intra_op_parallelism_threads() or threads
    times = _take_turns(_timers(path, signatures, batch_sizes, threads), runs)
    rows = [_row(*key, threads, values) for key, values in times.items()]
    return {"hardware": hardware.describe(), "measurements": rows}


def measure_together(
    subjects: Sequence[Subject], batch_sizes: Sequence[int] = (1,), runs: int = 100
) -> list[dict[str, Any]]:
    """Times warm calls of several models in turns.

    Args:
      subjects: the models.
      batch_sizes: images per call.
      runs: timed calls per model, signature, batch size and number of threads.

    Returns:
      For each subject `hardware`, `measurements` and `other_threads`, both rows as
      of `measure`: the first with the model's `default_threads`, so that they hold
      a row per signature and batch size, the second with others.

    Raises:
      InputError: for a model that cannot be loaded or called.
    """
    timers: dict[tuple[int, int, str, int], Timer] = {}
    with contextlib.ExitStack() as stack:
        for threads in sorted({count for subject in subjects for count in subject.threads}):
            chosen = [index for index, each in enumerate(subjects) if threads in each.threads]
            worker = _worker([subjects[index] for index in chosen], batch_sizes, threads)
            numbered = stack.enter_context(worker)
            for (position, signature, batch_size), timer in numbered.items():
                timers[chosen[position], threads, signature, batch_size] = timer
        times = _take_turns(timers, runs)
    latencies = []
    for index, subject in enumerate(subjects):
        default = default_threads(subject.path)
        latency = {"hardware": hardware.describe(), "measurements": [], "other_threads": []}
        for (owner, threads, signature, batch_size), values in times.items():
            if owner == index:
                rows = latency["measurements" if threads == default else "other_threads"]
                rows.append(_row(signature, batch_size, threads, values))
        latencies.append(latency)
    return latencies


def _take_turns(timers: Mapping[Key, Timer], runs: int) -> dict[Key, list[float]]:
    """Milliseconds of `runs` calls of each, after some that don't count, in random order."""
    times: dict[Key, list[float]] = {key: [] for key in timers}
    order = random.Random(0)
    for turn in range(-WARM_UP_CALLS, runs):
        for key in order.sample(list(timers), len(timers)):
            time_ms = timers[key]()
            if turn >= 0:
                times[key].append(time_ms)
    return times


def _row(signature: str, batch_size: int, threads: int, times_ms: list[float]) -> dict[str, Any]:
    p50, p95, p99 = (round(float(p), 4) for p in np.percentile(times_ms, [50, 95, 99]))
    return {
        "signature": signature,
        "batch_size": batch_size,
        "threads": threads,
        "runs": len(times_ms),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
    }


def _timers(
    path: pathlib.Path, signatures: Sequence[str], batch_sizes: Sequence[int], threads: int
) -> dict[tuple[str, int], Timer]:
    """A timer per signature and batch size, in this process."""
    load = _tflite_calls if path.suffix == ".tflite" else _saved_model_calls
    calls = load(path, signatures, batch_sizes, threads)
    return {key: _timer(call) for key, call in calls.items()}


def _timer(call: Callable[[], Any]) -> Timer:
    def time_ms() -> float:
        # Whoever was in turn before has filled the caches with something else.
        call()
        started = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - started)

    return time_ms


def _saved_model_calls(
    path: pathlib.Path, signatures: Sequence[str], batch_sizes: Sequence[int], threads: int
) -> dict[tuple[str, int], Callable[[], Any]]:
    del threads  # The process's.
    loaded = tf.saved_model.load(str(path)).signatures

    def call(function: Any, images: tf.Tensor) -> Callable[[], Any]:
        return lambda: function(images=images)["probabilities"].numpy()

    calls = {}
    for batch_size, name in itertools.product(batch_sizes, signatures):
        spec = loaded[name].structured_input_signature[1]["images"]
        images = tf.zeros([batch_size, *spec.shape[1:]], spec.dtype)
        calls[name, batch_size] = call(loaded[name], images)
    return calls


def _tflite_calls(
    path: pathlib.Path, signatures: Sequence[str], batch_sizes: Sequence[int], threads: int
) -> dict[tuple[str, int], Callable[[], Any]]:
    def call(runner: Any, images: np.ndarray) -> Callable[[], Any]:
        return lambda: runner(images=images)

    calls = {}
    # One interpreter per batch size: each keeps its buffers.
    for batch_size in batch_sizes:
        interpreter = Interpreter(str(path), num_threads=threads)
        for name in signatures:
            runner = interpreter.get_signature_runner(name)
            images = runner.get_input_details()["images"]
            zeros = np.zeros([batch_size, *images["shape"][1:]], images["dtype"])
            calls[name, batch_size] = call(runner, zeros)
    return calls


@contextlib.contextmanager
def _worker(
    subjects: Sequence[Subject], batch_sizes: Sequence[int], threads: int
) -> Iterator[dict[tuple[int, str, int], Timer]]:
    """Timers by position of the subject, signature and batch size, in another process."""
    request = {
        "threads": threads,
        "batch_sizes": list(batch_sizes),
        "subjects": [[str(each.path), list(each.signatures)] for each in subjects],
    }
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "hne_tf.exported.latency"],
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
    request = json.loads(sys.stdin.readline())
    tf.config.threading.set_intra_op_parallelism_threads(request["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(request["threads"])
    timers = {
        (position, *key): timer
        for position, (path, signatures) in enumerate(request["subjects"])
        for key, timer in _timers(
            pathlib.Path(path), signatures, request["batch_sizes"], request["threads"]
        ).items()
    }
    print(json.dumps(list(timers)), flush=True)
    numbered = list(timers.values())
    for line in sys.stdin:
        print(numbered[int(line)](), flush=True)


if __name__ == "__main__":
    _main()
