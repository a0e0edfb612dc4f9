"""Whether more compute only makes answers better."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from hne_tf.metrics.columns import MeanPerColumn, hits
from hne_tf.models.averaging import check_average, ensemble_log_probabilities


@keras.saving.register_keras_serializable("hne_tf")
class LostAnswers(MeanPerColumn):
    """Share of examples that some smaller ensemble gets right and this one does not.

    What is lost where a right answer turns wrong with more compute (Jazbec et al., "Towards
    Anytime Classification in Early-Exit Architectures by Enforcing Conditional Monotonicity",
    NeurIPS 2023); 0 for one leaf.

    Args:
      sizes: ensemble sizes, as for `EnsembleAccuracy`; smaller ensembles are of any size.
      average: see `averaging.ensemble_log_probabilities`.
    """

    def __init__(
        self,
        sizes: Sequence[int] | None = None,
        average: str = "logits",
        name: str = "lost",
        **kwargs: Any,
    ) -> None:
        super().__init__(sizes, name, **kwargs)
        self._average = check_average(average)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sizes": self._given, "average": self._average}

    def _values(self, labels: Any, leaf_logits: Any) -> Any:
        every = range(1, max(self._columns) + 1)
        right = hits(labels, ensemble_log_probabilities(leaf_logits, every, self._average))
        before = ops.cast(ops.cumsum(right, axis=1) - right > 0, right.dtype)
        return ops.take(before * (1 - right), np.array(self._columns) - 1, axis=1)
