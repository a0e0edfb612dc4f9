"""What becomes of a request that is spread over several servers."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class PartAttempt:
    """One call of a request.

    Attributes:
      address: the server's.
      leaves: first leaf that was asked for, and the one after the last.
      code: name of the gRPC status, `"OK"` for leaves that came in time.
      latency_ms: time until it ended.
    """

    address: str
    leaves: tuple[int, int]
    code: str
    latency_ms: float


@dataclasses.dataclass(frozen=True)
class SpreadAnswer:
    """An answer of the leaves that came in time.

    Attributes:
      probabilities: float32 `[batch, classes]`.
      leaves: first leaf and the one after the last, of each part that is in it.
      total: number of leaves of the model.
      version: of the model, the same for all leaves.
      latency_ms: time from call to answer.
      attempts: all calls.
    """

    probabilities: np.ndarray
    leaves: tuple[tuple[int, int], ...]
    total: int
    version: int
    latency_ms: float
    attempts: tuple[PartAttempt, ...]

    @property
    def size(self) -> int:
        """Number of leaves in it."""
        return sum(stop - first for first, stop in self.leaves)

    @property
    def share(self) -> float:
        """The part of the model's leaves that are in it."""
        return self.size / self.total
