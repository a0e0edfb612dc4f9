"""SGD in fewer TensorFlow kernels, and traced in fewer parts."""

import functools
import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence

import keras
import tensorflow as tf

from hne_tf.training.backends.shared_nodes import CALL, handles


class FusedSGD(keras.optimizers.SGD):
    """`keras.optimizers.SGD`, with one TensorFlow kernel for a weight where Keras takes nine.

    A tree of 16 has hundreds of small weights. Their updates were a quarter of the operations of
    a step, each of which is traced, placed and optimised before the first one is taken.

    Attributes:
      owners: to what a variable belongs, by its `id`. On one device, neighbours of one owner are
        updated by one function, which is traced once for owners with weights of equal shapes.
    """

    owners: Mapping[int, Hashable] = {}

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        if not self.momentum or isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable, learning_rate)
            return
        velocity = self.momentums[self._get_variable_index(variable)].value
        self._apply_momentum(variable.handle, velocity.handle, gradient, learning_rate)

    def _apply_momentum(
        self, variable: tf.Tensor, velocity: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor
    ) -> None:
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable,
            accum=velocity,
            lr=tf.cast(rate, gradient.dtype),
            grad=gradient,
            momentum=tf.cast(self.momentum, gradient.dtype),
            use_nesterov=self.nesterov,
        )

    def _backend_update_step(
        self,
        grads: Sequence[tf.Tensor],
        trainable_variables: Sequence[keras.Variable],
        learning_rate: tf.Tensor,
    ) -> None:
        replicas = self._distribution_strategy.num_replicas_in_sync
        dense = all(isinstance(gradient, tf.Tensor) for gradient in grads)
        if not (self.owners and self.momentum and dense and replicas == 1):
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return
        velocities = [self.momentums[self._get_variable_index(v)] for v in trainable_variables]
        updates = zip(trainable_variables, velocities, grads, strict=True)
        for _, together in itertools.groupby(updates, key=lambda each: self.owners[id(each[0])]):
            variables, momentums, gradients = zip(*together, strict=True)
            self._update(handles(variables), handles(momentums), gradients, learning_rate)

    @functools.cached_property
    def _update(self) -> Callable[..., None]:
        """Updates several variables, by their handles."""

        def update(variables, velocities, gradients, learning_rate):
            for variable, velocity, gradient in zip(variables, velocities, gradients, strict=True):
                self._apply_momentum(variable, velocity, gradient, learning_rate)

        return tf.function(update, autograph=False, experimental_attributes=CALL)
