"""How far leaves differ."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from hne_tf.metrics.columns import MeanPerColumn


@keras.saving.register_keras_serializable("hne_tf")
class Disagreement(MeanPerColumn):
    """Share of pairs among the first leaves that predict different classes; 0 for one leaf.

    Args:
      sizes: ensemble sizes, as for `EnsembleAccuracy`.
    """

    def __init__(
        self, sizes: Sequence[int] | None = None, name: str = "disagreement", **kwargs: Any
    ) -> None:
        super().__init__(sizes, name, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sizes": self._given}

    def _values(self, labels, leaf_logits):
        best, classes = ops.argmax(leaf_logits, axis=-1), leaf_logits.shape[-1]
        votes = ops.one_hot(best, classes, dtype=self.dtype)
        columns = []
        for size in self._columns:
            counts = ops.sum(votes[:, :size], axis=1)
            agreeing = ops.sum(counts * (counts - 1), axis=-1)
            pairs = max(1, size * (size - 1))
            columns.append((size * (size - 1) - agreeing) / pairs)
        return ops.stack(columns, axis=1)


@keras.saving.register_keras_serializable("hne_tf")
class LeafVariance(MeanPerColumn):
    """How far the probabilities of the first leaves lie apart; 0 for one leaf.

    Mean over examples of the sum over classes of the variance over leaves. It is
    what averaging their probabilities takes off the mean leaf's Brier score.

    Args:
      sizes: ensemble sizes, as for `EnsembleAccuracy`.
    """

    def __init__(
        self, sizes: Sequence[int] | None = None, name: str = "variance", **kwargs: Any
    ) -> None:
        super().__init__(sizes, name, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sizes": self._given}

    def _values(self, labels, leaf_logits):
        probabilities = ops.softmax(leaf_logits, axis=-1)
        return ops.stack(
            [ops.sum(ops.var(probabilities[:, :size], axis=1), axis=-1) for size in self._columns],
            axis=1,
        )
