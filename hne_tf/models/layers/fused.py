"""The training factory with TensorFlow's fused kernels.

One kernel takes the batch's statistics and normalises, and one sums the squares of a
weight, where Keras composes the same from a dozen. Needs TensorFlow; statistics are of
one replica's batch.
"""

import dataclasses
import math
from typing import Any, ClassVar

import keras
import tensorflow as tf

from hne_tf.errors import InputError
from hne_tf.models.layers.grouped import GroupedLayers
from hne_tf.models.layers.training import TrainingLayers


@keras.saving.register_keras_serializable("hne_tf")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` over the last axis of images, the same numbers faster.

    Inputs are `[batch, height, width, channels]`. Inference is Keras's own.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not training or not self.trainable:
            return super().call(inputs, training=training, mask=mask)
        normalised, mean, variance = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma.value,
            offset=self.beta.value,
            mean=(),
            variance=(),
            epsilon=self.epsilon,
        )[:3]
        # The kernel's variance is the unbiased estimate, Keras's the biased one.
        count = math.prod(inputs.shape[:-1]) if inputs.shape.is_fully_defined() else _pixels(inputs)
        self._keep(self.moving_mean, mean, 1 - self.momentum)
        self._keep(self.moving_variance, variance, (1 - self.momentum) * (count - 1) / count)
        return normalised

    def _keep(self, moving: keras.Variable, statistic: tf.Tensor, share: Any) -> None:
        moving.assign(moving * self.momentum + statistic * share)


def _pixels(images: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.size(images) // images.shape[-1], tf.float32)


@keras.saving.register_keras_serializable("hne_tf")
class FusedL2(keras.regularizers.L2):
    """`keras.regularizers.L2`, whose value and gradient are a kernel each."""

    def __call__(self, x: Any) -> tf.Tensor:
        # The kernel gives half of the sum of squares.
        return 2 * self.l2 * tf.nn.l2_loss(x)


@keras.saving.register_keras_serializable("hne_tf")
@dataclasses.dataclass(frozen=True)
class FusedTrainingLayers(TrainingLayers):
    """`TrainingLayers` with fused kernels; weights and results are the same.

    Raises:
      InputError: if norms are to be synchronised, which the kernel cannot.
    """

    batch_normalization: ClassVar[type[keras.layers.BatchNormalization]] = FusedBatchNormalization
    l2: ClassVar[type[keras.regularizers.L2]] = FusedL2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.synchronized:
            raise InputError(
                "fused batch norms cannot be synchronised, got fused_norm and synchronized_norm on"
            )


@keras.saving.register_keras_serializable("hne_tf")
@dataclasses.dataclass(frozen=True)
class FusedGroupedLayers(FusedTrainingLayers, GroupedLayers):
    """`GroupedLayers` with fused batch norms; one kernel for the norms of all nodes."""
