"""Leaves that learn by themselves."""

from typing import Any

import keras
from keras import ops

from hne_tf.objectives.cross_entropy import check_views, cross_entropy
from hne_tf.objectives.labels import check_smoothing


@keras.saving.register_keras_serializable("hne_tf")
class Independent(keras.losses.Loss):
    """`L_I = sum_n CE(f_n, y)`: every leaf learns the labels by itself.

    Args:
      label_smoothing: part of a label that is spread evenly over all classes.
      views: that leaves learn from, see `cross_entropy`.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        views: int = 1,
        name: str = "independent",
        **kwargs: Any,
    ) -> None:
        # Whatever Keras's default is: losses do not fit into float16.
        kwargs.setdefault("dtype", "float32")
        super().__init__(name=name, **kwargs)
        self._label_smoothing = check_smoothing(label_smoothing)
        self._views = check_views(views)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        log_probabilities = ops.log_softmax(y_pred, axis=-1)
        return cross_entropy(y_true, log_probabilities, self._label_smoothing, self._views)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "label_smoothing": self._label_smoothing,
            "views": self._views,
        }
