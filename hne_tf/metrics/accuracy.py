"""Shares of right answers."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from hne_tf.metrics.columns import MeanPerColumn, PerColumn, PerSize, hits
from hne_tf.models.averaging import check_average, ensemble_log_probabilities
from hne_tf.objectives.labels import class_numbers


@keras.saving.register_keras_serializable("hne_tf")
class EnsembleAccuracy(PerSize):
    """Share of examples whose most probable class is the label. See `PerSize`."""

    def __init__(
        self,
        sizes: Sequence[int] | None = None,
        average: str = "logits",
        name: str = "accuracy",
        **kwargs: Any,
    ) -> None:
        super().__init__(sizes, average, name, **kwargs)

    def score(self, labels: Any, log_probabilities: Any) -> Any:
        return hits(labels, log_probabilities)


@keras.saving.register_keras_serializable("hne_tf")
class BalancedAccuracy(PerColumn):
    """Mean over the classes that occur of the accuracy on each.

    Args:
      sizes: ensemble sizes, as for `EnsembleAccuracy`.
      average: see `averaging.ensemble_log_probabilities`.
    """

    def __init__(
        self,
        sizes: Sequence[int] | None = None,
        average: str = "logits",
        name: str = "balanced_accuracy",
        **kwargs: Any,
    ) -> None:
        super().__init__(sizes, name, **kwargs)
        self._average = check_average(average)

    def _make_state(self, columns: int, classes: int) -> None:
        # Sums over the examples of each class.
        self._examples = self.add_weight(shape=(classes,), initializer="zeros", name="examples")
        shape = (columns, classes)
        self._right = self.add_weight(shape=shape, initializer="zeros", name="right")
        self._answered = self.add_weight(shape=shape, initializer="zeros", name="answered")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sizes": self._given, "average": self._average}

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.build(y_pred.shape)
        classes = y_pred.shape[-1]
        scores = ensemble_log_probabilities(y_pred, self._columns, self._average)
        wanted = ops.one_hot(class_numbers(y_true, classes), classes, dtype=self.dtype)
        given = ops.one_hot(ops.argmax(scores, axis=-1), classes, dtype=self.dtype)
        weighted = wanted
        if sample_weight is not None:
            weighted = wanted * ops.cast(ops.reshape(sample_weight, (-1, 1)), self.dtype)
        weights = ops.sum(weighted, axis=-1)
        self._examples.assign_add(ops.sum(weighted, axis=0))
        self._right.assign_add(ops.einsum("bc,bsc->sc", weighted, given))
        self._answered.assign_add(ops.einsum("b,bsc->sc", weights, given))

    def _row(self) -> Any:
        of_each = ops.divide_no_nan(self._right, self._examples)
        occurring = ops.sum(ops.cast(self._examples > 0, self.dtype))
        return ops.divide_no_nan(ops.sum(of_each, axis=-1), occurring)

    def by_class(self) -> list[dict[str, Any]]:
        """What the mean is made of.

        Returns:
          Per class: `examples`; and by size, a string as in JSON, `accuracy`, the share
          of them that is answered right (recall), and `precision`, the share of such
          answers that is right; None where there is nothing to share.
        """
        examples, right, answered = (
            ops.convert_to_numpy(w) for w in (self._examples, self._right, self._answered)
        )
        return [
            {
                "examples": int(examples[label]),
                "accuracy": self._shares(right[:, label], examples[label : label + 1]),
                "precision": self._shares(right[:, label], answered[:, label]),
            }
            for label in range(len(examples))
        ]

    def _shares(self, parts: Any, wholes: Any) -> dict[str, float | None]:
        wholes = np.broadcast_to(wholes, parts.shape)
        return {
            str(size): float(part / whole) if whole else None
            for size, part, whole in zip(self._columns, parts, wholes, strict=True)
        }


@keras.saving.register_keras_serializable("hne_tf")
class LeafAccuracy(MeanPerColumn):
    """Accuracy of every leaf by itself, `leaf_accuracy_0 …`.

    Args:
      leaves: number of leaves, all of the logits' by default.
    """

    def __init__(
        self, leaves: int | None = None, name: str = "leaf_accuracy", **kwargs: Any
    ) -> None:
        super().__init__(None if leaves is None else range(leaves), name, **kwargs)
        self._leaves = leaves

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "leaves": self._leaves}

    def _columns_of(self, leaves: int) -> tuple[int, ...]:
        return tuple(range(leaves))

    def _values(self, labels, leaf_logits):
        return hits(labels, leaf_logits)
