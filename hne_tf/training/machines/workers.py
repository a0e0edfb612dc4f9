"""The workers of a run where they wait for each other."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from hne_tf.errors import InterruptedRunError
from hne_tf.training.machines.cluster import Cluster

# What a collective raises on one worker when another has died, hangs or has been restarted:
# classes of `tf.errors`.
_LOST = (
    "AbortedError",
    "CancelledError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "UnavailableError",
)


class Workers:
    """Agreement among the workers of a run; alone, a worker agrees with itself.

    Every worker has to call the same methods in the same order.

    Args:
      cluster: the workers.
      strategy: what connects several of them, a `tf.distribute.Strategy`.
    """

    def __init__(self, cluster: Cluster, strategy: Any) -> None:
        self.cluster = cluster
        self._strategy = strategy

    def wait(self) -> None:
        """Returns when all workers have come here."""
        self._sum(0)

    def leave(self) -> None:
        """Returns when all workers have come here and no longer need each other."""
        self.wait()
        if self.cluster.workers == 1:
            return
        # A worker that is missing here has passed the first wait, so nobody needs it.
        with contextlib.suppress(*_lost_errors()):
            self.wait()

    def any(self, wish: bool) -> bool:
        """Whether at least one worker has the wish."""
        return self._sum(int(wish)) > 0

    def agree(self, value: int) -> bool:
        """Whether all workers have the same value."""
        return not self.any(self._sum(value) != value * self.cluster.workers)

    def _sum(self, value: int) -> int:
        """The sum of the workers' values."""
        if self.cluster.workers == 1:
            return value
        import tensorflow as tf

        replicas = self._strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(value, tf.float64)
        )
        total = self._strategy.reduce(tf.distribute.ReduceOp.SUM, replicas, axis=None)
        return round(float(total) * self.cluster.workers / self._strategy.num_replicas_in_sync)


def _lost_errors() -> tuple[type[Exception], ...]:
    import tensorflow as tf

    return tuple(getattr(tf.errors, name) for name in _LOST)


@contextlib.contextmanager
def lost_workers_told(cluster: Cluster) -> Iterator[None]:
    """Tells that a worker is lost by what the block raises when it is.

    A worker that dies is noticed within seconds, one that hangs by its missing
    heartbeats within half a minute.

    Raises:
      InterruptedRunError: if another worker is lost.
    """
    if cluster.workers == 1:
        yield
        return
    try:
        yield
    except _lost_errors() as error:
        reason = re.search(r"aborted by: (.*)", str(error)) or re.search(r"(.*)", str(error))
        raise InterruptedRunError(
            f"one of the {cluster.workers} workers is lost ({reason[1]}); "
            "the same command on every worker goes on from the newest checkpoint"
        ) from error
