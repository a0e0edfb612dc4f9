"""Anytime inference over the wire: an answer after every leaf, from stock TF Serving.

The server keeps nothing between steps: the client sends the cached activation and the
running sum back, as `hne_tf.exported.session` does with a model in its own process.
"""

import dataclasses
import math
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import numpy as np

from hne_tf.client.answers import Attempt, BudgetError
from hne_tf.client.budget_client import ServingClient
from hne_tf.client.closing import Closing
from hne_tf.client.manifest import ServingManifest
from hne_tf.client.messages import CallError, CallMetadata
from hne_tf.errors import InputError
from hne_tf.exported.session import AnytimeSession, StepTimes

# Of a step whose walk has no deadline: a hanging server must not hang the caller.
_STEP_TIMEOUT_S = 10.0

COMPLETE = "complete"
DEADLINE = "deadline"


@dataclasses.dataclass(frozen=True)
class AnytimeAnswer:
    """The answer after a step.

    Attributes:
      probabilities: float32 `[batch, classes]`.
      size: number of leaves in it.
      latency_ms: time from the start of the walk.
    """

    probabilities: np.ndarray
    size: int
    latency_ms: float


class RemoteSteps:
    """The steps of a served model: a `hne_tf.exported.steps.StepRunner`.

    Args:
      client: of the model.
      manifest: of the model.
      end_s: when calls are given up, on the clock of `time.perf_counter`.

    Raises:
      InputError: if the manifest describes no steps.
    """

    def __init__(
        self, client: ServingClient, manifest: ServingManifest, end_s: float = math.inf
    ) -> None:
        if not manifest.steps:
            raise InputError("manifest must describe the model's steps, got none")
        self.steps = manifest.steps
        self.image_shape = manifest.image_shape
        self.class_names = manifest.classes
        self._client = client
        self._end_s = end_s

    def run(self, step: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Computes one step on the server; see `StepRunner.run`.

        Raises:
          CallError: if the server does not answer in time or refuses.
        """
        timeout_s = min(_STEP_TIMEOUT_S, self._end_s - time.perf_counter())
        return self._client.run(step["signature"], inputs, timeout_s=timeout_s).arrays


class _SharedTimes(StepTimes):
    """Step times of all walks of a client, which may run in several threads."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def add(self, size: int, batch_size: int, time_ms: float) -> None:
        """See `StepTimes.add`."""
        with self._lock:
            super().add(size, batch_size, time_ms)

    def estimate_ms(self, size: int, batch_size: int) -> float:
        """See `StepTimes.estimate_ms`."""
        with self._lock:
            return super().estimate_ms(size, batch_size)


class Walk:
    """A batch of images on its way through the leaves; iterating gives better answers.

    Attributes:
      best: the answer so far; None before the first.
      stopped: why the walk is over: `COMPLETE`, `DEADLINE`, or what the server
        failed with; None while it is not. A caller who has seen enough stops
        iterating, and can go on later.
      failed: whether it ended because the server failed; `best` stays valid.
    """

    def __init__(
        self,
        runner: RemoteSteps,
        images: np.ndarray,
        times: StepTimes,
        started_s: float,
        end_s: float,
    ) -> None:
        self.best: AnytimeAnswer | None = None
        self.stopped: str | None = None
        self.failed = False
        self._leaves = len(runner.steps)
        self._batch_size = len(images)
        self._times = times
        self._started_s = started_s
        self._end_s = end_s
        self._session = iter(AnytimeSession(runner, images, times))

    def __iter__(self) -> Iterator[AnytimeAnswer]:
        """Yields an answer after each leaf, until the last, the deadline or a failure.

        Raises:
          BudgetError: if not even the first step gives an answer.
        """
        while self.stopped is None:
            size = self.best.size if self.best else 0
            if size == self._leaves:
                self.stopped = COMPLETE
            elif size and not self._fits(size + 1):
                self.stopped = DEADLINE
            elif self._step():
                yield self.best

    def _fits(self, size: int) -> bool:
        estimate_s = self._times.estimate_ms(size, self._batch_size) / 1000
        return self._end_s == math.inf or time.perf_counter() + estimate_s <= self._end_s

    def _step(self) -> bool:
        try:
            size, probabilities = next(self._session)
        except CallError as error:
            waited_ms = self._elapsed_ms()
            if self.best is None:
                attempt = Attempt(1, error.code.name, waited_ms)
                raise BudgetError(f"no first answer: {error}", [attempt], error.code) from error
            late = error.code is grpc.StatusCode.DEADLINE_EXCEEDED and self._end_s < math.inf
            self.failed = not late
            self.stopped = DEADLINE if late else str(error)
            return False
        self.best = AnytimeAnswer(probabilities, size, self._elapsed_ms())
        return True

    def _elapsed_ms(self) -> float:
        return 1000 * (time.perf_counter() - self._started_s)


class AnytimeClient(Closing):
    """Walks through the leaves of a served model, as far as time and interest allow.

    Thread-safe; a context manager that closes the connection.

    Args:
      target: `host:port` of the server.
      model: the model's name there.
      manifest: of the model. It says how steps follow each other, which the
        signatures do not: caches of two blocks can have one shape.
      credentials: for TLS, see `grpc.ssl_channel_credentials`; plain text without.
      metadata: see `client.ServingClient`.

    Raises:
      InputError: if the manifest describes no steps.

    Example:
      >>> with AnytimeClient("127.0.0.1:8500", "digits", read_manifest(path)) as client:
      ...     for answer in client.walk(images, deadline_ms=20):
      ...         if answer.probabilities.max() > 0.95:
      ...             break
    """

    def __init__(
        self,
        target: str,
        model: str,
        manifest: ServingManifest,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: CallMetadata = (),
    ) -> None:
        self._client = ServingClient(target, model, credentials=credentials, metadata=metadata)
        self._manifest = manifest
        self._times = _SharedTimes()
        RemoteSteps(self._client, manifest)

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def walk(self, images: np.ndarray, deadline_ms: float | None = None) -> Walk:
        """Starts a walk; its steps are taken by iterating over it.

        Args:
          images: uint8 `[batch, height, width, channels]`.
          deadline_ms: milliseconds from this call to the last answer. A step that
            would end later, by what steps took before, is not started.

        Raises:
          InputError: for images that the model does not take, or a deadline that
            is not above 0.
        """
        if deadline_ms is not None and not deadline_ms > 0:
            raise InputError(f"deadline_ms must be a number above 0, got {deadline_ms!r}")
        started_s = time.perf_counter()
        end_s = math.inf if deadline_ms is None else started_s + deadline_ms / 1000
        runner = RemoteSteps(self._client, self._manifest, end_s)
        return Walk(runner, images, self._times, started_s, end_s)

    def predict(self, images: np.ndarray, deadline_ms: float | None = None) -> Walk:
        """Walks to the end; the answer is the walk's `best`.

        Raises:
          InputError: see `walk`.
          BudgetError: if not even the first step gives an answer.
        """
        walk = self.walk(images, deadline_ms)
        for _ in walk:
            pass
        return walk
