"""What metrics are made of whose result is a row of values."""

import re
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from hne_tf.models.averaging import check_average, ensemble_log_probabilities
from hne_tf.objectives.labels import class_numbers
from hne_tf.tree import ensemble_sizes


class PerColumn(keras.metrics.Metric):
    """A metric whose result is a row of values, each with its own name.

    Args:
      columns: sizes or leaves; if None, what the number of leaves makes them, which
        the first update tells.
      name: what the names of the values begin with, the class's by default.
    """

    def __init__(
        self, columns: Sequence[int] | None, name: str | None = None, **kwargs: Any
    ) -> None:
        name = name or re.sub(r"(?<=.)(?=[A-Z])", "_", type(self).__name__).lower()
        # Whatever Keras's default is: sums over a split do not fit into float16.
        kwargs.setdefault("dtype", "float32")
        super().__init__(name=name, **kwargs)
        self._given = None if columns is None else tuple(columns)
        self._columns: tuple[int, ...] = ()

    def build(self, leaf_logits_shape: Sequence[int | None]) -> None:
        """Makes the state, if there is none, for logits `[batch, leaves, classes]`.

        Keras's `fit` and updates do it by themselves. A loop that updates the metric in
        a graph over several devices does it first, under its strategy.
        """
        if not self._columns:
            _, leaves, classes = leaf_logits_shape
            self._columns = self._given or self._columns_of(leaves)
            self._make_state(len(self._columns), classes)

    def add_weight(self, **settings: Any) -> Any:
        """Keras's, of the metric's own type."""
        return super().add_weight(**{"dtype": self.dtype, **settings})

    def _columns_of(self, leaves: int) -> tuple[int, ...]:
        return ensemble_sizes(leaves)

    def _make_state(self, columns: int, classes: int) -> None:
        raise NotImplementedError

    def _row(self) -> Any:
        """The value of each column."""
        raise NotImplementedError

    def result(self) -> dict[str, Any]:
        if not self._columns:
            return {}
        row = self._row()
        return {f"{self.name}_{column}": row[i] for i, column in enumerate(self._columns)}


class MeanPerColumn(PerColumn):
    """Running mean over examples of a row of values."""

    def _make_state(self, columns: int, classes: int) -> None:
        self._total = self.add_weight(shape=(columns,), initializer="zeros", name="total")
        self._count = self.add_weight(shape=(), initializer="zeros", name="count")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.build(y_pred.shape)
        values = ops.cast(self._values(y_true, y_pred), self.dtype)
        if sample_weight is None:
            weights = ops.ones((ops.shape(values)[0],), self.dtype)
        else:
            weights = ops.cast(ops.reshape(sample_weight, (-1,)), self.dtype)
        self._total.assign_add(ops.sum(values * weights[:, None], axis=0))
        self._count.assign_add(ops.sum(weights))

    def _values(self, labels: Any, leaf_logits: Any) -> Any:
        """`[batch, columns]` from labels and `[batch, leaves, classes]`."""
        raise NotImplementedError

    def _row(self) -> Any:
        return ops.divide_no_nan(self._total, self._count)


class PerSize(MeanPerColumn):
    """The mean over examples of a score of each ensemble size; subclasses write `score`.

    Args:
      sizes: ensemble sizes; by default powers of two below the number of leaves, then
        all leaves, as `Tree.sizes`. A network with exits has others, `Exits.sizes`.
      average: see `averaging.ensemble_log_probabilities`.
      name: what the names of the values begin with, the class's by default.

    Example:
      >>> @keras.saving.register_keras_serializable("my_package")
      ... class Confidence(PerSize):
      ...     def score(self, labels: Any, log_probabilities: Any) -> Any:
      ...         return ops.exp(ops.max(log_probabilities, axis=-1))
    """

    def __init__(
        self,
        sizes: Sequence[int] | None = None,
        average: str = "logits",
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(sizes, name, **kwargs)
        self._average = check_average(average)

    def score(self, labels: Any, log_probabilities: Any) -> Any:
        """`[batch, sizes]` from labels and log-probabilities `[batch, sizes, classes]`."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sizes": self._given, "average": self._average}

    def _values(self, labels, leaf_logits):
        log_probabilities = ensemble_log_probabilities(leaf_logits, self._columns, self._average)
        return self.score(labels, log_probabilities)


def hits(labels: Any, scores: Any) -> Any:
    """1 where the best of `[batch, k, classes]` is the label, else 0: `[batch, k]`."""
    best = ops.cast(ops.argmax(scores, axis=-1), "int32")
    right = class_numbers(labels, scores.shape[-1])
    return ops.cast(ops.equal(best, right[:, None]), "float32")
