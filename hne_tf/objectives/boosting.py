"""Leaves that correct those before them."""

from typing import Any

import keras
from keras import ops

from hne_tf.errors import InputError
from hne_tf.objectives.cross_entropy import cross_entropy
from hne_tf.objectives.labels import check_smoothing


@keras.saving.register_keras_serializable("hne_tf")
class Boosting(keras.losses.Loss):
    """`sum_n CE(f_n + F_{n-1}, y)`: leaf n learns what the sum of those before gets wrong.

    `F_{n-1}` is the sum of the leaves before, gradient stopped, so that the answer of size n is
    that of the first n leaves added up. Yu et al., "Boosted Dynamic Neural Networks", AAAI 2023;
    for trees and exits. They also rescale gradients where branches part, see
    `TrainingLayers.branch_gradients`.

    Args:
      average: of the model whose loss it is, `"sum"`.
      label_smoothing: part of a label that is spread evenly over all classes.

    Raises:
      InputError: for another average.

    Example:
      >>> model = TreeEnsemble(resnet, Tree((1, 2, 2)), images, average="sum")
      >>> model.compile("sgd", loss=Boosting(), metrics=[EnsembleAccuracy(average="sum")])
    """

    def __init__(
        self,
        average: str = "sum",
        label_smoothing: float = 0.0,
        name: str = "boosting",
        **kwargs: Any,
    ) -> None:
        # Whatever Keras's default is: losses do not fit into float16.
        kwargs.setdefault("dtype", "float32")
        super().__init__(name=name, **kwargs)
        if average != "sum":
            raise InputError(f"average must be sum for boosting, got {average!r}")
        self._label_smoothing = check_smoothing(label_smoothing)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        before = ops.stop_gradient(ops.cumsum(y_pred, axis=1) - y_pred)
        log_probabilities = ops.log_softmax(y_pred + before, axis=-1)
        return cross_entropy(y_true, log_probabilities, self._label_smoothing)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "label_smoothing": self._label_smoothing}
