"""Whether confidences are as high as accuracies."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from hne_tf.errors import InputError
from hne_tf.metrics.columns import PerColumn, hits
from hne_tf.models.averaging import check_average, ensemble_log_probabilities


@keras.saving.register_keras_serializable("hne_tf")
class ExpectedCalibrationError(PerColumn):
    """Gap between confidence and accuracy, over equally wide bins of confidence.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3.

    Args:
      sizes: ensemble sizes, as for `EnsembleAccuracy`.
      bins: number of bins between 0 and 1; a confidence on an edge belongs to
        the bin below it.
      average: see `averaging.ensemble_log_probabilities`.
    """

    def __init__(
        self,
        sizes: Sequence[int] | None = None,
        bins: int = 15,
        average: str = "logits",
        name: str = "ece",
        **kwargs: Any,
    ) -> None:
        super().__init__(sizes, name, **kwargs)
        if bins < 1:
            raise InputError(f"bins must be 1 or more, got {bins}")
        self._bins = bins
        self._average = check_average(average)

    def _make_state(self, columns: int, classes: int) -> None:
        # Sums over the examples of each bin.
        shape = (columns, self._bins)
        self._counts = self.add_weight(shape=shape, initializer="zeros", name="counts")
        self._confidence = self.add_weight(shape=shape, initializer="zeros", name="confidence")
        self._hits = self.add_weight(shape=shape, initializer="zeros", name="hits")

    def get_config(self) -> dict[str, Any]:
        settings = {"sizes": self._given, "bins": self._bins, "average": self._average}
        return {**super().get_config(), **settings}

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        if sample_weight is not None:
            raise InputError("expected calibration error takes no sample weights")
        self.build(y_pred.shape)
        log_probabilities = ensemble_log_probabilities(y_pred, self._columns, self._average)
        confidence = ops.max(ops.exp(log_probabilities), axis=-1)
        right = hits(y_true, log_probabilities)
        bins = ops.cast(ops.ceil(confidence * self._bins), "int32") - 1
        membership = ops.one_hot(ops.clip(bins, 0, self._bins - 1), self._bins, dtype=right.dtype)
        self._counts.assign_add(ops.sum(membership, axis=0))
        self._confidence.assign_add(ops.einsum("bs,bsk->sk", confidence, membership))
        self._hits.assign_add(ops.einsum("bs,bsk->sk", right, membership))

    def _row(self) -> Any:
        # A bin's share of the error is its gap, weighted by its share of the examples.
        gaps = ops.sum(ops.abs(self._confidence - self._hits), axis=-1)
        return ops.divide_no_nan(gaps, ops.sum(self._counts, axis=-1))

    def diagrams(self) -> dict[int, dict[str, list[float | None]]]:
        """The reliability diagram of each size, which the error sums up.

        Returns:
          Per size, from the least confident bin to the most: `count`, the bin's
          examples, and their mean `confidence` and `accuracy`, None where it has none.
        """
        sums = [ops.convert_to_numpy(w) for w in (self._counts, self._confidence, self._hits)]
        diagrams = {}
        for size, counts, *rows in zip(self._columns, *sums, strict=True):
            confidence, accuracy = (
                [
                    float(total / count) if count else None
                    for total, count in zip(row, counts, strict=True)
                ]
                for row in rows
            )
            diagrams[size] = {
                "count": [int(count) for count in counts],
                "confidence": confidence,
                "accuracy": accuracy,
            }
        return diagrams
