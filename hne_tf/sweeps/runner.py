"""Runs what a sweep lacks, each run in a process of its own. Imports no TensorFlow."""

import collections
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

from hne_tf import hardware
from hne_tf.sweeps import worker
from hne_tf.sweeps.plan import Run
from hne_tf.sweeps.store import Store

_POLL_S = 0.1
_ASK_EVERY_S = 1.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How running came out.

    Attributes:
      failed: the runs that failed.
      stopped: whether a signal ended it before all runs were tried.
    """

    failed: tuple[Run, ...]
    stopped: bool


@dataclasses.dataclass
class _Active:
    """A run under way."""

    run: Run
    process: subprocess.Popen
    log: pathlib.Path
    started_s: float


class Runner:
    """Runs some runs of a store, several at a time.

    Every run adds what it prints to a log of its own. SIGTERM and SIGINT are
    passed on: runs save and stop, and go on when they are run again; a second
    signal kills them.

    Args:
      store: where the runs are kept; claimed by this process.
      lock: descriptor of the claim, which the runs inherit.
      splits: splits that every run is evaluated on.
      jobs: runs at a time.
      report: gets a line per run that starts and ends.
    """

    def __init__(
        self,
        store: Store,
        lock: int,
        splits: Sequence[str],
        jobs: int,
        report: Callable[[str], None],
    ) -> None:
        self._store = store
        self._lock = lock
        self._splits = tuple(splits)
        self._jobs = jobs
        self._report = report
        self._active: list[_Active] = []
        self._failed: list[Run] = []
        self._seconds: list[float] = []

    def run(self, runs: Sequence[Run]) -> Outcome:
        """Runs them all, or until a signal; a run that fails does not stop the others."""
        waiting = collections.deque(runs)
        with _Signals() as signals:
            told_s = 0.0
            try:
                while self._active or (waiting and not signals.count):
                    # More than once: training stops at the first time and would
                    # leave it to evaluations that the run has not ended.
                    if signals.count and time.monotonic() > told_s + _ASK_EVERY_S:
                        self._pass_on(signals.count, first=not told_s)
                        told_s = time.monotonic()
                    while waiting and len(self._active) < self._jobs and not signals.count:
                        self._active.append(self._start(waiting.popleft()))
                    for active in [one for one in self._active if one.process.poll() is not None]:
                        self._active.remove(active)
                        self._end(active, len(waiting) + len(self._active), signals.count > 0)
                    time.sleep(_POLL_S)
            finally:
                # Empty unless something here broke.
                for active in self._active:
                    active.process.kill()
                    active.process.wait()
            return Outcome(tuple(self._failed), signals.count > 0)

    def _start(self, run: Run) -> _Active:
        self._store.discard_unbegun(run)
        path = self._store.log_path(run)
        job = worker.Job(
            os.getpid(), str(self._store.workdir(run).path), run.config.to_dict(), self._splits
        )
        with path.open("a") as log:
            process = subprocess.Popen(
                hardware.child("hne_tf.sweeps.worker"),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # The library is where this process found it.
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    "TF_CPP_MIN_LOG_LEVEL": "3",
                    # A log is read while its run is under way.
                    "PYTHONUNBUFFERED": "1",
                },
                pass_fds=[self._lock],
                # Ctrl-C reaches runs through this process only, and so once.
                start_new_session=True,
            )
        active = _Active(run, process, path, time.monotonic())
        try:
            with process.stdin as pipe:
                pipe.write(json.dumps(dataclasses.asdict(job)).encode())
        except BrokenPipeError:
            pass  # It died at once; its exit code and log tell.
        self._report(f"started {run}; log {path}")
        return active

    def _end(self, active: _Active, left: int, stopping: bool) -> None:
        """Takes note of a run whose process has ended."""
        run, code = active.run, active.process.returncode
        if code == 0 and self._store.evaluations(run, self._splits) is not None:
            seconds = time.monotonic() - active.started_s
            self._seconds.append(seconds)
            mean = sum(self._seconds) / len(self._seconds)
            rest_min = mean * left / self._jobs / 60
            note = f"; {left} left, about {rest_min:.0f} min" if left else ""
            self._report(f"finished {run} in {seconds:.0f} s{note}")
        elif stopping:
            self._report(f"stopped {run}")
        else:
            self._failed.append(run)
            self._report(f"failed: {run}; log {active.log}: {_reason(code, active.log)}")

    def _pass_on(self, signals: int, first: bool) -> None:
        """Asks the runs under way to stop, or kills them after a second signal."""
        if first:
            self._report("stopping; runs under way save first, a second signal kills them")
        for active in self._active:
            active.process.send_signal(signal.SIGTERM if signals == 1 else signal.SIGKILL)


class _Signals:
    """Counts SIGTERM and SIGINT instead of dying of them."""

    def __init__(self) -> None:
        self.count = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._count)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _count(self, number: int, frame: types.FrameType | None) -> None:
        self.count += 1


def _reason(code: int, log: pathlib.Path) -> str:
    """Why a run failed, in one line."""
    if code < 0:
        return f"killed by signal {-code}"
    if code == 0:
        return "ended without its evaluations"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), f"exit code {code}")[:300]
