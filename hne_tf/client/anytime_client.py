"""Anytime inference over the wire: an answer after every leaf, from stock TF Serving.

The server keeps nothing between steps: the client sends the cached activation and the
running sum back, as `hne_tf.exported.session` does with a model in its own process.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import grpc
import numpy as np

from hne_tf.client.answers import Attempt, BudgetError
from hne_tf.client.budget_client import ServingClient
from hne_tf.client.closing import Closing
from hne_tf.client.messages import CallError, as_array
from hne_tf.client.metadata import CallMetadata
from hne_tf.client.remote_steps import RemoteSteps, VersionGoneError
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.session import AnytimeSession, StepTimes, checked_deadline
from hne_tf.exported.uncertainty.stopping import Confidence, Limit

COMPLETE = "complete"
DEADLINE = "deadline"
SURE = "sure"


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


class Walk:
    """A batch of images on its way through the leaves; iterating gives better answers.

    All leaves of an answer are of one version of the model. If the server drops that
    version midway, the walk starts again with the newest one, once and if it can get
    further than `best` in time; until then `best` stays the answer.

    Attributes:
      best: the answer so far; None before the first.
      stopped: why the walk is over: `COMPLETE`, `DEADLINE`, `SURE`, or what the server
        failed with; None while it is not. A caller who has seen enough stops
        iterating, and can go on later.
      failed: whether it ended because the server failed; `best` stays valid.
    """

    def __init__(
        self,
        begin: Callable[[], AnytimeSession],
        leaves: int,
        times: StepTimes,
        started_s: float,
        end_s: float,
        limit: Limit | None,
    ) -> None:
        self.best: AnytimeAnswer | None = None
        self.stopped: str | None = None
        self.failed = False
        self._begin = begin
        self._leaves = leaves
        self._times = times
        self._started_s = started_s
        self._end_s = end_s
        self._limit = limit
        self._session = begin()
        self._batch_size = len(self._session.sizes)
        self._restarted = False

    def __iter__(self) -> Iterator[AnytimeAnswer]:
        """Yields an answer after each leaf, until the last, a limit or a failure.

        Raises:
          BudgetError: if not even the first step gives an answer.
        """
        while self.stopped is None:
            size = self._size
            if size > (self.best.size if self.best else 0):
                self.best = AnytimeAnswer(self._session.probabilities, size, self._elapsed_ms())
                yield self.best
            elif size == self._leaves:
                self.stopped = COMPLETE
            elif self.best and self._limit and self._session.is_sure(self._limit):
                self.stopped = SURE
            elif self.best and not self._fits(size):
                self.stopped = DEADLINE
            else:
                self._step()

    @property
    def _size(self) -> int:
        """Leaves of the session's answer, which an interrupt can leave behind untold."""
        return int(self._session.sizes.min())

    def _fits(self, size: int) -> bool:
        """Whether there is time for the steps to a better answer, one unless it started again."""
        if self._end_s == math.inf:
            return True
        steps = range(size + 1, self.best.size + 2)
        estimate_ms = sum(self._times.estimate_ms(step, self._batch_size) for step in steps)
        return time.perf_counter() + estimate_ms / 1000 <= self._end_s

    def _step(self) -> None:
        try:
            # A new iterator goes on where an interrupted one has stopped.
            next(iter(self._session))
        except VersionGoneError as error:
            self._start_again(error)
        except CallError as error:
            self._stop(error)

    def _start_again(self, error: VersionGoneError) -> None:
        if self._restarted:
            # Servers of several versions behind one name could go on like this for ever.
            self._stop(error)
            return
        self._session, self._restarted = self._begin(), True

    def _stop(self, error: CallError) -> None:
        if self.best is None:
            attempt = Attempt(1, error.code.name, self._elapsed_ms())
            raise BudgetError(f"no first answer: {error}", [attempt], error.code) from error
        late = error.code is grpc.StatusCode.DEADLINE_EXCEEDED and self._end_s < math.inf
        self.failed = not late
        self.stopped = DEADLINE if late else str(error)

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
      metadata: see `budget_client.ServingClient`.
      plaintext_secrets: see `budget_client.ServingClient`.

    Raises:
      InputError: for metadata that cannot be sent.

    Example:
      >>> with AnytimeClient("127.0.0.1:8500", "digits", read_manifest(path)) as client:
      ...     for answer in client.walk(images, deadline_ms=20, confidence=0.95):
      ...         print(answer.size, answer.latency_ms)
    """

    def __init__(
        self,
        target: str,
        model: str,
        manifest: Manifest,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: CallMetadata = (),
        plaintext_secrets: bool = False,
    ) -> None:
        self._client = ServingClient(
            target,
            model,
            credentials=credentials,
            metadata=metadata,
            plaintext_secrets=plaintext_secrets,
        )
        self._manifest = manifest
        self._times = StepTimes()

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def walk(
        self,
        images: np.ndarray,
        deadline_ms: float | None = None,
        *,
        confidence: Confidence | None = None,
        rule: str = "confidence",
    ) -> Walk:
        """Starts a walk; its steps are taken by iterating over it.

        Args:
          images: uint8 `[batch, height, width, channels]`.
          deadline_ms: milliseconds from this call to the last answer. A step that
            would end later, by what steps took before, is not started.
          confidence: the walk is over when all images are at least as sure as this,
            see `AnytimeSession.run`.
          rule: likewise.

        Raises:
          InputError: for images that the model does not take, a deadline that is not
            above 0, or a limit that cannot be.
        """
        started_s = time.perf_counter()
        end_s = started_s + checked_deadline(deadline_ms) / 1000
        images = as_array("images", images)

        def begin() -> AnytimeSession:
            runner = RemoteSteps(self._client, self._manifest, end_s)
            return AnytimeSession(runner, images, self._times)

        leaves = len(self._manifest.steps)
        limit = Limit.of(confidence, rule, leaves)
        return Walk(begin, leaves, self._times, started_s, end_s, limit)

    def predict(
        self,
        images: np.ndarray,
        deadline_ms: float | None = None,
        *,
        confidence: Confidence | None = None,
        rule: str = "confidence",
    ) -> Walk:
        """Walks to the end; the answer is the walk's `best`. See `walk`.

        Raises:
          InputError: see `walk`.
          BudgetError: if not even the first step gives an answer.
        """
        walk = self.walk(images, deadline_ms, confidence=confidence, rule=rule)
        for _ in walk:
            pass
        return walk
