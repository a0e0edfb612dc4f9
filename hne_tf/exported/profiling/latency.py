"""Latency of a model's signatures on this machine.

    python -m hne_tf.exported.profiling.latency

serves `measure_together`: the number of threads of TensorFlow is a setting of the
process, and so is oneDNN, so each of both has a process of its own. They call in turns,
one at a time, so that a busy moment of the machine hits all models, sizes and settings
alike.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from hne_tf import hardware
from hne_tf.errors import InputError, ended_in_one_line
from hne_tf.exported.interface import LeavesSignature, sum_output
from hne_tf.exported.measurements import MeasuredLatency, Measurement, relative_time
from hne_tf.exported.model import ExportedModel, load
from hne_tf.exported.session import WARM_UP_CALLS

Key = TypeVar("Key", bound=Hashable)
# Calls a signature and returns the milliseconds that it took.
Timer = Callable[[], float]

# Settings are equal unless one takes so much less than the usual one: beside other work, medians
# of the same setting differ by less.
_WORTH_CHANGING = 0.9


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured of a model.

    Attributes:
      model: all of its ensemble sizes.
      threads: numbers of threads that compute.
    """

    model: ExportedModel
    threads: tuple[int, ...]

    @property
    def settings(self) -> Iterator["Setting"]:
        """What the model is measured with."""
        for threads in self.threads:
            yield Setting(threads, onednn=False)
            if self.model.has_onednn:
                yield Setting(threads, onednn=True)
                # Servers have the threads of the process, and choose how they are used.
                if threads == self.model.default_threads > 1:
                    yield Setting(threads, onednn=False, side_by_side=True)
                    yield Setting(threads, onednn=True, side_by_side=True)


class Setting(NamedTuple):
    """Settings of a process.

    Attributes:
      threads: that compute.
      onednn: whether TensorFlow computes with oneDNN.
      side_by_side: whether an operation of TensorFlow has one thread, and as many run at
        the same time.
    """

    threads: int
    onednn: bool
    side_by_side: bool = False


def measure(
    model: ExportedModel, batch_sizes: Sequence[int] = (1,), runs: int = 100
) -> MeasuredLatency:
    """Times warm calls of each ensemble size and part in this process, all taking turns.

    Args:
      model: computed by its `threads`.
      batch_sizes: images per call.
      runs: timed calls per ensemble size and batch size.

    Raises:
      InputError: for a model that cannot be loaded.
    """
    return measure_all([model], batch_sizes, runs)[0]


def measure_all(
    models: Sequence[ExportedModel], batch_sizes: Sequence[int] = (1,), runs: int = 100
) -> list[MeasuredLatency]:
    """What `measure` gives for each of several models, which take turns too."""
    timers = {
        (position, *key): each
        for position, model in enumerate(models)
        for key, each in _timers(model, batch_sizes).items()
    }
    rows: list[list[Measurement]] = [[] for _ in models]
    for (position, *key), values in take_turns(timers, runs).items():
        rows[position].append(_measurement(*key, models[position].threads, values))
    return [MeasuredLatency(hardware.describe(), tuple(each)) for each in rows]


def measure_together(
    subjects: Sequence[Subject], batch_sizes: Sequence[int] = (1,), runs: int = 100
) -> list[MeasuredLatency]:
    """Times warm calls of several models in turns.

    Args:
      subjects: the models.
      batch_sizes: images per call.
      runs: timed calls per model, ensemble size, batch size, number of threads, with
        and without oneDNN and side by side where TensorFlow computes.

    Returns:
      Latencies of each subject: its `measurements` are those with the model's
      `default_threads`, and of TensorFlow with the faster setting, so that they hold a
      row per ensemble size and batch size.

    Raises:
      InputError: for a model that cannot be loaded or called.
    """
    timers: dict[tuple[int, Setting, str, int], Timer] = {}
    with contextlib.ExitStack() as stack:
        workers = []
        for setting in sorted({setting for subject in subjects for setting in subject.settings}):
            chosen = [index for index, each in enumerate(subjects) if setting in each.settings]
            models = [subjects[index].model for index in chosen]
            timed = stack.enter_context(worker(models, batch_sizes, setting))
            workers.append((setting, chosen, timed))
        # All load TensorFlow and the models side by side.
        for setting, chosen, loaded in workers:
            for (position, signature, batch_size), timer in loaded().items():
                timers[chosen[position], setting, signature, batch_size] = timer
        times = take_turns(timers, runs)
    rows: list[dict[Setting, list[Measurement]]] = [{} for _ in subjects]
    for (owner, setting, signature, batch_size), values in times.items():
        row = _measurement(signature, batch_size, setting.threads, values, setting.side_by_side)
        rows[owner].setdefault(setting, []).append(row)
    return [_latency(subject.model, found) for subject, found in zip(subjects, rows, strict=True)]


def _latency(
    model: ExportedModel, rows: Mapping[Setting, Sequence[Measurement]]
) -> MeasuredLatency:
    """The rows of a model, those of the fastest setting apart."""
    plain = Setting(model.default_threads, onednn=False)
    settings = [setting for setting in rows if setting.threads == plain.threads]
    taking = {setting: relative_time(rows[setting], rows[plain]) for setting in settings}
    fastest = min(taking, key=taking.get)
    if taking[fastest] > _WORTH_CHANGING:
        fastest = plain
    by_default: list[Measurement] = []
    other_threads: list[Measurement] = []
    slower: list[Measurement] = []
    for setting, found in rows.items():
        same = by_default if setting == fastest else other_threads
        (same if setting.onednn == fastest.onednn else slower).extend(found)
    return MeasuredLatency(
        hardware.describe(),
        tuple(by_default),
        tuple(other_threads),
        fastest.onednn if model.has_onednn else None,
        tuple(slower),
    )


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
    signature: str,
    batch_size: int,
    threads: int,
    times_ms: Sequence[float],
    side_by_side: bool = False,
) -> Measurement:
    p50, p95, p99 = (round(float(p), 4) for p in np.percentile(times_ms, [50, 95, 99]))
    runs = len(times_ms)
    return Measurement(signature, batch_size, runs, p50, p95, p99, threads, side_by_side)


def _timers(model: ExportedModel, batch_sizes: Sequence[int]) -> dict[tuple[str, int], Timer]:
    """A timer per signature of images and batch size, in this process."""
    timers = {}
    names = [f"ensemble_{size}" for size in model.sizes]
    names += [part.signature for part in model.manifest.leaves]
    for batch_size, name in itertools.product(batch_sizes, names):
        inputs = {"images": np.zeros([batch_size, *model.image_shape], np.uint8)}
        timers[name, batch_size] = timer(_call(model, name, inputs))
    return timers


def _call(model: ExportedModel, name: str, inputs: Mapping[str, np.ndarray]) -> Callable[[], Any]:
    signature = model.signature(name)
    # What clients ask for: of some leaves their sum.
    output = sum_output(model.manifest.average) if LeavesSignature.named(name) else "probabilities"
    return lambda: np.asarray(signature.run(inputs)[output])


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
def worker(
    models: Sequence[ExportedModel], batch_sizes: Sequence[int], setting: Setting
) -> Iterator[Callable[[], dict[tuple[int, str, int], Timer]]]:
    """Timers by position of the model, signature and batch size, in another process.

    Gives what waits until the models are loaded and returns the timers.
    """
    request = {
        "threads": setting.threads,
        "operation_threads": 1 if setting.side_by_side else setting.threads,
        "batch_sizes": list(batch_sizes),
        "models": [str(model.path) for model in models],
    }
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            hardware.child("hne_tf.exported.profiling.latency"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, hardware.ONEDNN_VARIABLE: str(int(setting.onednn))},
        ) as process,
    ):

        def tell(value: Any) -> None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(value) + "\n")
                process.stdin.flush()

        def answer() -> Any:
            if line := process.stdout.readline():
                return json.loads(line)
            process.wait()
            errors.seek(0)
            last = errors.read().strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
            raise InputError(f"models must load and answer, got {last[0]}")

        def timed(number: int) -> float:
            tell(number)
            return answer()

        def loaded() -> dict[tuple[int, str, int], Timer]:
            keys = map(tuple, answer())
            return {key: functools.partial(timed, number) for number, key in enumerate(keys)}

        try:
            tell(request)
            yield loaded
        finally:
            # Its input ends, and so does it.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def _main() -> None:
    """Answers a request with the keys of its timers, then a number of a key with its time."""
    import tensorflow as tf

    request = json.loads(sys.stdin.readline())
    threads = request["threads"]
    tf.config.threading.set_intra_op_parallelism_threads(request["operation_threads"])
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
    with ended_in_one_line():
        _main()
