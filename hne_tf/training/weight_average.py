"""An exponential moving average of a model's weights while it trains."""

import keras
from keras import ops

from hne_tf.errors import InputError


class WeightAverage:
    """Keeps the average of a model's weights, moving statistics too, in a model of its own.

    After update `n` the average is `m average + (1 - m) weights` with `m =
    min(momentum, (1 + n) / (10 + n))`, so that a short run forgets the weights that
    it began with (`tf.train.ExponentialMovingAverage` does the same).

    Args:
      source: the model that is trained.
      average: another one of the same weights, which are set to the source's.
      momentum: share of the average that is kept at an update, in the long run.

    Raises:
      InputError: for a momentum outside (0, 1).
    """

    def __init__(self, source: keras.Model, average: keras.Model, momentum: float) -> None:
        if not 0 < momentum < 1:
            raise InputError(f"the average's momentum must lie between 0 and 1, got {momentum}")
        self.model = average
        self._momentum = momentum
        self._pairs = list(zip(average.weights, source.weights, strict=True))
        self.restart()

    def restart(self) -> None:
        """Begins anew with the source's weights."""
        for mean, weight in self._pairs:
            mean.assign(weight)

    def update(self, updates: keras.KerasTensor) -> None:
        """Takes the source's weights into the average.

        Args:
          updates: which update it is, from 1.
        """
        updates = ops.cast(updates, "float32")
        kept = ops.minimum(self._momentum, (1 + updates) / (10 + updates))
        for mean, weight in self._pairs:
            mean.assign(kept * mean + (1 - kept) * weight)
