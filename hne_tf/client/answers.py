"""What becomes of a request: an answer, or an error that says what was tried."""

import dataclasses
from collections.abc import Sequence

import grpc
import numpy as np

from hne_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One call of a request.

    Attributes:
      size: ensemble size asked for; None where the signatures were.
      code: name of the gRPC status, `"OK"` for an answer.
      latency_ms: time until it ended.
    """

    size: int | None
    code: str
    latency_ms: float


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
      probabilities: float32 `[batch, classes]`.
      size: ensemble size that it is from.
      latency_ms: time from call to answer.
      attempts: all calls; the last is the one that was answered.
    """

    probabilities: np.ndarray
    size: int
    latency_ms: float
    attempts: tuple[Attempt, ...]


class BudgetError(InputError):
    """A request without an answer.

    Attributes:
      attempts: the calls that were made.
      code: gRPC status that says why: that of the last attempt, or
        RESOURCE_EXHAUSTED if no ensemble fits the budget and none was asked.
    """

    def __init__(self, message: str, attempts: Sequence[Attempt], code: grpc.StatusCode) -> None:
        super().__init__(message)
        self.attempts = tuple(attempts)
        self.code = code
