"""Runs predictions, those of one signature together in batches.

With the meaning of TF Serving's `batching_parameters`: a queue per signature,
`max_batch_size` rows, `batch_timeout_micros` from the first request of a batch.
TensorFlow's own scheduler, the BatchFunction op, does not know of gRPC's
deadlines, does not tell the sizes of its batches, and keeps its queues for the
life of the process, which swaps models.
"""

import dataclasses
import math
import threading
from collections.abc import Mapping

import grpc
import numpy as np

from hne_tf.server.admission import Caller, Slots
from hne_tf.server.anytime.signature import AnytimeSignature, SizedSignature
from hne_tf.server.errors import RequestError
from hne_tf.server.metrics import ServerMetrics
from hne_tf.server.servable import LoadedSignature

Arrays = Mapping[str, np.ndarray]
Runnable = LoadedSignature | SizedSignature | AnytimeSignature


class Batcher:
    """Runs signatures in the threads of those who ask.

    The first request of a batch leads: it waits for others, then for a slot, and
    runs the graph for all.

    Args:
      slots: bounds the graphs that are computed at a time.
      metrics: told the rows of every run.
      max_batch_size: rows of a batch; 0 runs every request by itself.
      timeout_s: how long the first request of a batch waits for others.
    """

    def __init__(
        self, slots: Slots, metrics: ServerMetrics, max_batch_size: int = 0, timeout_s: float = 0.0
    ) -> None:
        self._slots = slots
        self._metrics = metrics
        self._max_batch_size = max_batch_size
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._open: dict[Runnable, _Batch] = {}
        self._running = 0

    @property
    def running(self) -> int:
        """Requests that are being computed."""
        return self._running

    def run(
        self, signature: Runnable, inputs: Arrays, call: Caller, end_s: float = math.inf
    ) -> Arrays:
        """Runs a signature on checked inputs and returns its outputs by name.

        With batches they have been checked to have no more rows than one.

        Args:
          signature: what to run.
          inputs: arrays by name.
          call: whose answer it is.
          end_s: when that must be there, on the clock of `time.perf_counter`.

        Raises:
          RequestError: DEADLINE_EXCEEDED or CANCELLED if the call is over before
            the work starts; INVALID_ARGUMENT for inputs of unequal batch dimensions;
            the graph's own errors.
        """
        if not self._max_batch_size or not signature.batchable:
            with self._slots.hold(call, end_s):
                return self._compute(signature, inputs, 1, end_s)
        task = _Task(inputs, _rows(inputs), call, end_s)
        batch, leads = self._join(signature, task)
        if leads:
            self._lead(signature, batch)
        else:
            call.when_over(lambda: task.taken or task.done.set())
            task.done.wait()
        if task.error is not None:
            raise task.error
        if task.outputs is None:
            raise call.ended()
        return task.outputs

    def _join(self, signature: Runnable, task: "_Task") -> tuple["_Batch", bool]:
        with self._lock:
            batch = self._open.get(signature)
            if batch is not None and batch.rows + task.rows > self._max_batch_size:
                self._close(signature, batch)
                batch = None
            leads = batch is None
            if batch is None:
                batch = self._open[signature] = _Batch()
            batch.tasks.append(task)
            batch.rows += task.rows
            if batch.rows == self._max_batch_size:
                self._close(signature, batch)
            return batch, leads

    def _close(self, signature: Runnable, batch: "_Batch") -> None:
        """Lets nobody else join; the lock must be held."""
        batch.closed.set()
        if self._open.get(signature) is batch:
            del self._open[signature]

    def _lead(self, signature: Runnable, batch: "_Batch") -> None:
        batch.closed.wait(self._timeout_s)
        # The leader goes on even if its own call is over: others rely on it.
        with self._slots.hold(None, batch.tasks[0].end_s):
            # Those who come while all slots are taken still fit in.
            with self._lock:
                self._close(signature, batch)
            tasks = [task for task in batch.tasks if not task.call.over]
            for task in tasks:
                task.taken = True
            try:
                self._run_together(signature, tasks)
            except Exception:
                # One request's data must not fail the others.
                for task in tasks:
                    self._run_alone(signature, task)
            finally:
                for task in batch.tasks:
                    task.done.set()

    def _run_together(self, signature: Runnable, tasks: list["_Task"]) -> None:
        if len(tasks) < 2:
            for task in tasks:
                self._run_alone(signature, task)
            return
        inputs = {
            name: np.concatenate([task.inputs[name] for task in tasks]) for name in tasks[0].inputs
        }
        end_s = min(task.end_s for task in tasks)
        outputs = self._compute(signature, inputs, len(tasks), end_s)
        ends = np.cumsum([task.rows for task in tasks])
        if any(len(array) != ends[-1] for array in outputs.values()):
            raise RequestError(
                grpc.StatusCode.INTERNAL, f"{signature.name} does not keep the batch dimension"
            )
        for task, end in zip(tasks, ends, strict=True):
            task.outputs = {name: array[end - task.rows : end] for name, array in outputs.items()}

    def _run_alone(self, signature: Runnable, task: "_Task") -> None:
        try:
            task.outputs = self._compute(signature, task.inputs, 1, task.end_s)
        except Exception as error:
            # To be raised where the request is answered.
            task.error = error

    def _compute(self, signature: Runnable, inputs: Arrays, requests: int, end_s: float) -> Arrays:
        with self._lock:
            self._running += requests
        try:
            if signature.batchable:
                self._metrics.computes(signature.name, len(next(iter(inputs.values()))))
            if isinstance(signature, AnytimeSignature):
                return signature.run_within(inputs, end_s, self._slots.share_s())
            return signature.run(inputs)
        finally:
            with self._lock:
                self._running -= requests


@dataclasses.dataclass(eq=False)
class _Task:
    """A request in a batch; `done` is also set when its call is over before it is `taken`."""

    inputs: Arrays
    rows: int
    call: Caller
    end_s: float
    done: threading.Event = dataclasses.field(default_factory=threading.Event)
    taken: bool = False
    outputs: Arrays | None = None
    error: Exception | None = None


@dataclasses.dataclass(eq=False)
class _Batch:
    tasks: list[_Task] = dataclasses.field(default_factory=list)
    rows: int = 0
    closed: threading.Event = dataclasses.field(default_factory=threading.Event)


def _rows(inputs: Arrays) -> int:
    rows = {len(array) for array in inputs.values()}
    if len(rows) > 1:
        raise RequestError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"the inputs of a batch must have equal first dimensions, got {sorted(rows)}",
        )
    return rows.pop()
