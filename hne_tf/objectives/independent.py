"""Leaves that learn by themselves."""

from typing import Any

import keras
from keras import ops

from hne_tf.objectives.cross_entropy import cross_entropy


@keras.saving.register_keras_serializable("hne_tf")
class Independent(keras.losses.Loss):
    """`L_I = sum_n CE(f_n, y)`: every leaf learns the labels by itself."""

    def __init__(self, name: str = "independent", **kwargs: Any) -> None:
        # Whatever Keras's default is: losses do not fit into float16.
        kwargs.setdefault("dtype", "float32")
        super().__init__(name=name, **kwargs)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return cross_entropy(y_true, ops.log_softmax(y_pred, axis=-1))
