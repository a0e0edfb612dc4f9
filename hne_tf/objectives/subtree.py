"""Ensembles that learn the labels together."""

from collections.abc import Sequence
from typing import Any

import keras

from hne_tf.models.averaging import check_average, ensemble_log_probabilities
from hne_tf.objectives.cross_entropy import cross_entropy
from hne_tf.objectives.labels import check_smoothing
from hne_tf.tree import ensemble_sizes


@keras.saving.register_keras_serializable("hne_tf")
class Subtree(keras.losses.Loss):
    """`L_S = sum_b CE(E_{2^b}, y)`: the labels are learnt by the ensembles.

    Lets branches co-adapt; the paper's negative result.

    Args:
      sizes: ensemble sizes; by default powers of two below the number of leaves, then
        all leaves, as `Tree.sizes`. A network with exits has others, `Exits.sizes`.
      average: what is averaged, see `averaging.ensemble_log_probabilities`.
      label_smoothing: part of a label that is spread evenly over all classes.
    """

    def __init__(
        self,
        sizes: Sequence[int] | None = None,
        average: str = "logits",
        label_smoothing: float = 0.0,
        name: str = "subtree",
        **kwargs: Any,
    ) -> None:
        # Whatever Keras's default is: losses do not fit into float16.
        kwargs.setdefault("dtype", "float32")
        super().__init__(name=name, **kwargs)
        self._sizes = None if sizes is None else tuple(sizes)
        self._average = check_average(average)
        self._label_smoothing = check_smoothing(label_smoothing)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        sizes = self._sizes or ensemble_sizes(y_pred.shape[1])
        log_probabilities = ensemble_log_probabilities(y_pred, sizes, self._average)
        return cross_entropy(y_true, log_probabilities, self._label_smoothing)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "sizes": self._sizes,
            "average": self._average,
            "label_smoothing": self._label_smoothing,
        }
