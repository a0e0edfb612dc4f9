"""Proper scores of probabilities."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from hne_tf.metrics.columns import PerSize
from hne_tf.objectives.labels import targets


@keras.saving.register_keras_serializable("hne_tf")
class NegativeLogLikelihood(PerSize):
    """Mean of `-log p(label)`, in nats. See `PerSize`."""

    def __init__(
        self,
        sizes: Sequence[int] | None = None,
        average: str = "logits",
        name: str = "nll",
        **kwargs: Any,
    ) -> None:
        super().__init__(sizes, average, name, **kwargs)

    def score(self, labels: Any, log_probabilities: Any) -> Any:
        return -ops.einsum("bsc,bc->bs", log_probabilities, targets(labels, log_probabilities))


@keras.saving.register_keras_serializable("hne_tf")
class BrierScore(PerSize):
    """Mean squared distance of probabilities to the one-hot label, summed over classes (0..2).

    Brier, "Verification of forecasts expressed in terms of probability", 1950.
    """

    def __init__(
        self,
        sizes: Sequence[int] | None = None,
        average: str = "logits",
        name: str = "brier",
        **kwargs: Any,
    ) -> None:
        super().__init__(sizes, average, name, **kwargs)

    def score(self, labels: Any, log_probabilities: Any) -> Any:
        error = ops.exp(log_probabilities) - targets(labels, log_probabilities)[:, None]
        return ops.sum(ops.square(error), axis=-1)
