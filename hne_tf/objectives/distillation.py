"""Leaves or nested ensembles that learn from the full ensemble."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from hne_tf.errors import InputError
from hne_tf.models.averaging import check_average, ensemble_log_probabilities
from hne_tf.objectives.cross_entropy import cross_entropy

COMBINATIONS = ("added", "traded")


class LinearRamp:
    """A weight that grows linearly from 0 to `value` over the first `steps` steps.

    An untrained ensemble is a poor teacher; this keeps it silent at first.

    Args:
      value: final weight.
      steps: steps until it is reached.
      iterations: the optimiser's step counter, `optimizer.iterations`.
    """

    def __init__(self, value: float, steps: int, iterations: keras.Variable) -> None:
        if steps < 1:
            raise InputError(f"a ramp takes 1 step or more, got {steps}")
        self.value = value
        self._steps = steps
        self._iterations = iterations

    def __call__(self) -> Any:
        progress = ops.cast(self._iterations, "float32") / self._steps
        return self.value * ops.minimum(progress, 1.0)


class _Distillation(keras.losses.Loss):
    """Cross-entropy of every leaf, and students drawn to the full ensemble's soft target.

    `L_I + a T^2 D` when added, `(1 - a) L_I + a T^2 D` when traded, with `D`
    the students' cross-entropy against `softmax(E_N / T)`, gradient stopped.

    Args:
      alpha: `a`, or a `LinearRamp` to it.
      temperature: `T`.
      combine: `"added"` or `"traded"`.
      average: what is averaged, see `averaging.ensemble_log_probabilities`.

    Raises:
      InputError: for a negative `alpha`, one above 1 when traded, a
        temperature of 0 or below, or an unknown `combine` or `average`.
    """

    def __init__(
        self,
        alpha: float | LinearRamp = 0.5,
        temperature: float = 2.0,
        combine: str = "added",
        average: str = "logits",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        ramped = isinstance(alpha, LinearRamp)
        self._constant_alpha = float(alpha.value if ramped else alpha)
        if combine not in COMBINATIONS:
            raise InputError(f"combine must be one of {', '.join(COMBINATIONS)}, got {combine!r}")
        if not self._constant_alpha >= 0:
            raise InputError(f"alpha must be 0 or more, got {self._constant_alpha}")
        if combine == "traded" and self._constant_alpha > 1:
            raise InputError(
                f"alpha must be at most 1 when it is traded, got {self._constant_alpha}"
            )
        if not temperature > 0:
            raise InputError(f"temperature must be above 0, got {temperature}")
        self._alpha = alpha if ramped else lambda: self._constant_alpha
        self._temperature = temperature
        self._combine = combine
        self._average = check_average(average)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        labels = cross_entropy(y_true, ops.log_softmax(y_pred, axis=-1))
        teacher = ensemble_log_probabilities(
            y_pred, [y_pred.shape[1]], self._average, self._temperature
        )
        soft_target = ops.stop_gradient(ops.exp(teacher))
        distillation = -ops.sum(soft_target * self._students(y_pred), axis=(1, 2))
        alpha = self._alpha()
        weight = 1.0 if self._combine == "added" else 1.0 - alpha
        return weight * labels + alpha * self._temperature**2 * distillation

    def _students(self, leaf_logits: Any) -> Any:
        """Log-probabilities `[batch, students, classes]` at the loss's temperature."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "alpha": self._constant_alpha,
            "temperature": self._temperature,
            "combine": self._combine,
            "average": self._average,
        }


@keras.saving.register_keras_serializable("hne_tf")
class CoDistillation(_Distillation):
    """`D = sum_n CE(f_n / T, soft target)`: pulls every leaf to the ensemble, at diversity's cost.

    See `_Distillation` for the arguments.
    """

    def __init__(self, name: str = "codistillation", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def _students(self, leaf_logits: Any) -> Any:
        return ops.log_softmax(leaf_logits / self._temperature, axis=-1)


@keras.saving.register_keras_serializable("hne_tf")
class HierarchicalDistillation(_Distillation):
    """`D = sum_{b<B} CE(E_{2^b} / T, soft target)`: pulls only the nested sub-ensembles.

    For a network with exits, with all sizes and `average="last"`, the last exit
    teaches each of those before it: the exit distillation of Phuong and Lampert,
    "Distillation-Based Training for Multi-Exit Architectures", ICCV 2019, at a constant
    temperature; theirs is `"traded"`, times a constant factor.

    Args:
      sizes: ensemble sizes, `tree.sizes`; the last one is the teacher.

    See `_Distillation` for the other arguments.
    """

    def __init__(self, sizes: Sequence[int], name: str = "hierarchical", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self._sizes = tuple(sizes)

    def _students(self, leaf_logits: Any) -> Any:
        # A single network has no smaller ensemble; it teaches nobody.
        if len(self._sizes) == 1:
            return ops.zeros_like(leaf_logits)
        return ensemble_log_probabilities(
            leaf_logits, self._sizes[:-1], self._average, self._temperature
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sizes": self._sizes}
