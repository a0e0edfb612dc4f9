"""SGD in fewer TensorFlow kernels."""

import keras
import tensorflow as tf


class FusedSGD(keras.optimizers.SGD):
    """`keras.optimizers.SGD`, with one TensorFlow kernel for a weight where Keras takes nine.

    A tree of 16 has hundreds of small weights. Their updates were a quarter of the operations of
    a step, each of which is traced, placed and optimised before the first one is taken.
    """

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        if not self.momentum or isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable, learning_rate)
            return
        velocity = self.momentums[self._get_variable_index(variable)].value
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=gradient,
            momentum=tf.cast(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )
