"""An objective of one's own."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("my_objective")
class QuietTrunk(keras.losses.Loss):
    """Every leaf learns smoothed labels, and the trunk's activation is kept small.

    Args:
      smoothing: part of each label that is spread over all classes.
      penalty: of the trunk's mean square.
    """

    # Asks for what this node gives, besides leaf logits.
    activations = ("block0.node0",)

    def __init__(self, smoothing=0.1, penalty=0.01, name="quiet_trunk"):
        super().__init__(name=name)
        self.smoothing, self.penalty = smoothing, penalty

    def call(self, y_true, y_pred):
        leaf_logits, trunk = y_pred["leaf_logits"], y_pred["block0.node0"]
        classes = leaf_logits.shape[-1]
        labels = ops.one_hot(ops.cast(ops.reshape(y_true, (-1,)), "int32"), classes)
        smooth = (1 - self.smoothing) * labels + self.smoothing / classes
        learnt = -ops.einsum("bnc,bc->b", ops.log_softmax(leaf_logits), smooth)
        return learnt + self.penalty * ops.mean(ops.square(trunk), axis=(1, 2, 3))

    def get_config(self):
        return {"smoothing": self.smoothing, "penalty": self.penalty, "name": self.name}
