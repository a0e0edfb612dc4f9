"""Leaves or nested ensembles that learn from the full ensemble."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from hne_tf.errors import InputError
from hne_tf.models.averaging import check_average, ensemble_log_probabilities
from hne_tf.objectives.cross_entropy import check_views, cross_entropy
from hne_tf.objectives.labels import check_smoothing
from hne_tf.objectives.ramp import check_ramp, ramped
from hne_tf.tree import ensemble_sizes

COMBINATIONS = ("added", "traded")


class Distillation(keras.losses.Loss):
    """Cross-entropy of every leaf, and students drawn to the full ensemble's soft target.

    `L_I + a T^2 D` when added, `(1 - a) L_I + a T^2 D` when traded, with `D`
    the students' cross-entropy against `softmax(E_N / T)`, gradient stopped.

    Args:
      alpha: `a`.
      temperature: `T`.
      combine: `"added"` or `"traded"`.
      average: what is averaged, see `averaging.ensemble_log_probabilities`.
      ramp_steps: steps over which `a` grows linearly from 0 to `alpha`: an untrained
        ensemble is a poor teacher. They are counted by `iterations`.
      label_smoothing: part of a label that is spread evenly over all classes; the soft
        target is as it is.
      views: that leaves learn the labels from, see `cross_entropy`; students learn from
        all rows.

    Attributes:
      iterations: the optimiser's step counter, see `Objective`.

    Raises:
      InputError: for a negative `alpha`, one above 1 when traded, a
        temperature of 0 or below, a negative number of steps, or an unknown
        `combine` or `average`.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        temperature: float = 2.0,
        combine: str = "added",
        average: str = "logits",
        ramp_steps: int = 0,
        label_smoothing: float = 0.0,
        views: int = 1,
        **kwargs: Any,
    ) -> None:
        # Whatever Keras's default is: losses do not fit into float16.
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        if combine not in COMBINATIONS:
            raise InputError(f"combine must be one of {', '.join(COMBINATIONS)}, got {combine!r}")
        if not alpha >= 0:
            raise InputError(f"alpha must be 0 or more, got {alpha}")
        if combine == "traded" and alpha > 1:
            raise InputError(f"alpha must be at most 1 when it is traded, got {alpha}")
        if not temperature > 0:
            raise InputError(f"temperature must be above 0, got {temperature}")
        self._alpha = alpha
        self._temperature = temperature
        self._combine = combine
        self._average = check_average(average)
        self._ramp_steps = check_ramp(ramp_steps)
        self._label_smoothing = check_smoothing(label_smoothing)
        self._views = check_views(views)
        self.iterations: keras.Variable | None = None

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return self._combined(y_true, y_pred, self._distilled(y_pred))

    def _combined(self, y_true: Any, leaf_logits: Any, distilled: Any) -> Any:
        """`L_I` and `D`, a value per example."""
        log_probabilities = ops.log_softmax(leaf_logits, axis=-1)
        labels = cross_entropy(y_true, log_probabilities, self._label_smoothing, self._views)
        alpha = ramped(self._alpha, self._ramp_steps, self.iterations)
        weight = 1.0 if self._combine == "added" else 1.0 - alpha
        return weight * labels + alpha * self._temperature**2 * distilled

    def _distilled(self, leaf_logits: Any) -> Any:
        """`D` of each example, `[batch]`."""
        teacher = ensemble_log_probabilities(
            leaf_logits, [leaf_logits.shape[1]], self._average, self._temperature
        )
        soft_target = ops.stop_gradient(ops.exp(teacher))
        return -ops.sum(soft_target * self._students(leaf_logits), axis=(1, 2))

    def _students(self, leaf_logits: Any) -> Any:
        """Log-probabilities `[batch, students, classes]` at the loss's temperature."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "alpha": self._alpha,
            "temperature": self._temperature,
            "combine": self._combine,
            "average": self._average,
            "ramp_steps": self._ramp_steps,
            "label_smoothing": self._label_smoothing,
            "views": self._views,
        }


@keras.saving.register_keras_serializable("hne_tf")
class CoDistillation(Distillation):
    """`D = sum_n CE(f_n / T, soft target)`: pulls every leaf to the ensemble, at diversity's cost.

    See `Distillation` for the arguments.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        temperature: float = 2.0,
        combine: str = "added",
        average: str = "logits",
        ramp_steps: int = 0,
        label_smoothing: float = 0.0,
        views: int = 1,
        name: str = "codistillation",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *(alpha, temperature, combine, average, ramp_steps, label_smoothing, views),
            name=name,
            **kwargs,
        )

    def _students(self, leaf_logits: Any) -> Any:
        return ops.log_softmax(leaf_logits / self._temperature, axis=-1)


@keras.saving.register_keras_serializable("hne_tf")
class HierarchicalDistillation(Distillation):
    """`D = sum_{b<B} CE(E_{2^b} / T, soft target)`: pulls only the nested sub-ensembles.

    For a network with exits, with all sizes and `average="last"`, the last exit
    teaches each of those before it: the exit distillation of Phuong and Lampert,
    "Distillation-Based Training for Multi-Exit Architectures", ICCV 2019, at a constant
    temperature; theirs is `"traded"`, times a constant factor.

    Args:
      sizes: ensemble sizes, of which the last one is the teacher; by default powers of
        two below the number of leaves, then all leaves, as `Tree.sizes`. A network with
        exits has others, `Exits.sizes`.

    See `Distillation` for the other arguments.

    Example:
      >>> model.compile("sgd", loss=HierarchicalDistillation(alpha=0.5, ramp_steps=1000))
    """

    def __init__(
        self,
        sizes: Sequence[int] | None = None,
        alpha: float = 0.5,
        temperature: float = 2.0,
        combine: str = "added",
        average: str = "logits",
        ramp_steps: int = 0,
        label_smoothing: float = 0.0,
        views: int = 1,
        name: str = "hierarchical",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *(alpha, temperature, combine, average, ramp_steps, label_smoothing, views),
            name=name,
            **kwargs,
        )
        self._sizes = None if sizes is None else tuple(sizes)

    def _students(self, leaf_logits: Any) -> Any:
        *students, _ = self._sizes or ensemble_sizes(leaf_logits.shape[1])
        # A single network has no smaller ensemble; it teaches nobody.
        if not students:
            return ops.zeros_like(leaf_logits)
        return ensemble_log_probabilities(leaf_logits, students, self._average, self._temperature)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sizes": self._sizes}
