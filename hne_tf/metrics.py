"""Keras metrics over leaf logits, one value per ensemble size.

Every metric is updated with labels (see `hne_tf.objectives.labels`) and leaf logits
`[batch, leaves, classes]`; `result()` is a dictionary such as `{"accuracy_1": …,
"accuracy_2": …}`.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from hne_tf.errors import InputError
from hne_tf.models.averaging import check_average, ensemble_log_probabilities
from hne_tf.objectives.labels import class_numbers, targets
from hne_tf.tree import ensemble_sizes


class _PerColumn(keras.metrics.Metric):
    """A metric whose result is a row of values, each with its own name.

    Args:
      columns: sizes or leaves; if None, what the number of leaves makes them, which
        the first update tells.
    """

    def __init__(self, name: str, columns: Sequence[int] | None, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self._given = None if columns is None else tuple(columns)
        self._columns: tuple[int, ...] = ()
        self._state_made = False

    def build(self, leaves: int) -> None:
        """Makes the state, if there is none, for so many leaves.

        Keras's `fit` and updates do it by themselves. A loop that updates the metric in
        a graph over several devices does it first, under its strategy.
        """
        if not self._state_made:
            self._make(self._given or self._columns_of(leaves))

    def _columns_of(self, leaves: int) -> tuple[int, ...]:
        return ensemble_sizes(leaves)

    def _make(self, columns: tuple[int, ...]) -> None:
        self._columns = columns
        self._make_state()
        self._state_made = True

    def _make_state(self) -> None:
        raise NotImplementedError

    def _row(self) -> Any:
        """The value of each column."""
        raise NotImplementedError

    def result(self) -> dict[str, Any]:
        if not self._state_made:
            return {}
        row = self._row()
        return {f"{self.name}_{column}": row[i] for i, column in enumerate(self._columns)}


class _MeanPerColumn(_PerColumn):
    """Running mean over examples of a row of values."""

    def __init__(self, name: str, columns: Sequence[int] | None, **kwargs: Any) -> None:
        super().__init__(name, columns, **kwargs)
        if self._given is not None:
            self._make(self._given)

    def _make_state(self) -> None:
        self._total = self.add_weight(
            shape=(len(self._columns),), initializer="zeros", name="total"
        )
        self._count = self.add_weight(shape=(), initializer="zeros", name="count")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.build(y_pred.shape[1])
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


class _PerSize(_MeanPerColumn):
    """A mean per ensemble size of what the ensembles' log-probabilities give.

    Args:
      sizes: ensemble sizes; by default powers of two below the number of leaves, then
        all leaves, as `Tree.sizes`. A network with exits has others, `Exits.sizes`.
      average: see `averaging.ensemble_log_probabilities`.
    """

    def __init__(self, sizes: Sequence[int] | None, average: str, name: str, **kwargs: Any) -> None:
        super().__init__(name, sizes, **kwargs)
        self._average = check_average(average)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sizes": self._given, "average": self._average}

    def _values(self, labels, leaf_logits):
        log_probabilities = ensemble_log_probabilities(leaf_logits, self._columns, self._average)
        return self._score(labels, log_probabilities)

    def _score(self, labels: Any, log_probabilities: Any) -> Any:
        """`[batch, sizes]` from labels and `[batch, sizes, classes]`."""
        raise NotImplementedError


@keras.saving.register_keras_serializable("hne_tf")
class EnsembleAccuracy(_PerSize):
    """Share of examples whose most probable class is the label. See `_PerSize`."""

    def __init__(
        self,
        sizes: Sequence[int] | None = None,
        average: str = "logits",
        name: str = "accuracy",
        **kwargs: Any,
    ) -> None:
        super().__init__(sizes, average, name, **kwargs)

    def _score(self, labels, log_probabilities):
        return _hits(labels, log_probabilities)


@keras.saving.register_keras_serializable("hne_tf")
class NegativeLogLikelihood(_PerSize):
    """Mean of `-log p(label)`, in nats. See `_PerSize`."""

    def __init__(
        self,
        sizes: Sequence[int] | None = None,
        average: str = "logits",
        name: str = "nll",
        **kwargs: Any,
    ) -> None:
        super().__init__(sizes, average, name, **kwargs)

    def _score(self, labels, log_probabilities):
        return -ops.einsum("bsc,bc->bs", log_probabilities, targets(labels, log_probabilities))


@keras.saving.register_keras_serializable("hne_tf")
class BrierScore(_PerSize):
    """Mean squared distance of probabilities to the one-hot label, summed over classes (0..2).

    Brier, "Verification of forecasts expressed in terms of probability", 1950.
    """

    def __init__(
        self,
        sizes: Sequence[int] | None = None,
        average: str = "logits",
        name: str = "brier",
        **kwargs: Any,
    ) -> None:
        super().__init__(sizes, average, name, **kwargs)

    def _score(self, labels, log_probabilities):
        error = ops.exp(log_probabilities) - targets(labels, log_probabilities)[:, None]
        return ops.sum(ops.square(error), axis=-1)


@keras.saving.register_keras_serializable("hne_tf")
class ExpectedCalibrationError(_PerColumn):
    """Gap between confidence and accuracy, over equally wide bins of confidence.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3.

    Args:
      sizes: ensemble sizes, as for `EnsembleAccuracy`.
      bins: number of bins between 0 and 1; a confidence on an edge belongs to
        the bin below it.
      average: see `averaging.ensemble_log_probabilities`.
    """

    def __init__(
        self,
        sizes: Sequence[int] | None = None,
        bins: int = 15,
        average: str = "logits",
        name: str = "ece",
        **kwargs: Any,
    ) -> None:
        super().__init__(name, sizes, **kwargs)
        if bins < 1:
            raise InputError(f"bins must be 1 or more, got {bins}")
        self._bins = bins
        self._average = check_average(average)
        if self._given is not None:
            self._make(self._given)

    def _make_state(self) -> None:
        # Sums over the examples of each bin.
        shape = (len(self._columns), self._bins)
        self._counts = self.add_weight(shape=shape, initializer="zeros", name="counts")
        self._confidence = self.add_weight(shape=shape, initializer="zeros", name="confidence")
        self._hits = self.add_weight(shape=shape, initializer="zeros", name="hits")

    def get_config(self) -> dict[str, Any]:
        settings = {"sizes": self._given, "bins": self._bins, "average": self._average}
        return {**super().get_config(), **settings}

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        if sample_weight is not None:
            raise InputError("expected calibration error takes no sample weights")
        self.build(y_pred.shape[1])
        log_probabilities = ensemble_log_probabilities(y_pred, self._columns, self._average)
        confidence = ops.max(ops.exp(log_probabilities), axis=-1)
        hits = _hits(y_true, log_probabilities)
        bins = ops.cast(ops.ceil(confidence * self._bins), "int32") - 1
        membership = ops.one_hot(ops.clip(bins, 0, self._bins - 1), self._bins, dtype=hits.dtype)
        self._counts.assign_add(ops.sum(membership, axis=0))
        self._confidence.assign_add(ops.einsum("bs,bsk->sk", confidence, membership))
        self._hits.assign_add(ops.einsum("bs,bsk->sk", hits, membership))

    def _row(self) -> Any:
        # A bin's share of the error is its gap, weighted by its share of the examples.
        gaps = ops.sum(ops.abs(self._confidence - self._hits), axis=-1)
        return ops.divide_no_nan(gaps, ops.sum(self._counts, axis=-1))

    def diagrams(self) -> dict[int, dict[str, list[float | None]]]:
        """The reliability diagram of each size, which the error sums up.

        Returns:
          Per size, from the least confident bin to the most: `count`, the bin's
          examples, and their mean `confidence` and `accuracy`, None where it has none.
        """
        sums = [ops.convert_to_numpy(w) for w in (self._counts, self._confidence, self._hits)]
        diagrams = {}
        for size, counts, *rows in zip(self._columns, *sums, strict=True):
            confidence, accuracy = (
                [
                    float(total / count) if count else None
                    for total, count in zip(row, counts, strict=True)
                ]
                for row in rows
            )
            diagrams[size] = {
                "count": [int(count) for count in counts],
                "confidence": confidence,
                "accuracy": accuracy,
            }
        return diagrams


@keras.saving.register_keras_serializable("hne_tf")
class BalancedAccuracy(keras.metrics.Metric):
    """Mean over the classes that occur of the accuracy on each.

    Args:
      sizes: ensemble sizes, `tree.sizes`.
      classes: number of classes.
      average: see `averaging.ensemble_log_probabilities`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        classes: int,
        average: str = "logits",
        name: str = "balanced_accuracy",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self._sizes = tuple(sizes)
        self._classes = classes
        self._average = check_average(average)
        # Sums over the examples of each class.
        self._examples = self.add_weight(shape=(classes,), initializer="zeros", name="examples")
        shape = (len(self._sizes), classes)
        self._right = self.add_weight(shape=shape, initializer="zeros", name="right")
        self._answered = self.add_weight(shape=shape, initializer="zeros", name="answered")

    def get_config(self) -> dict[str, Any]:
        settings = {"sizes": self._sizes, "classes": self._classes, "average": self._average}
        return {**super().get_config(), **settings}

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        labels = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        scores = ensemble_log_probabilities(y_pred, self._sizes, self._average)
        wanted = ops.one_hot(labels, self._classes, dtype=self.dtype)
        given = ops.one_hot(ops.argmax(scores, axis=-1), self._classes, dtype=self.dtype)
        weighted = wanted
        if sample_weight is not None:
            weighted = wanted * ops.cast(ops.reshape(sample_weight, (-1, 1)), self.dtype)
        weights = ops.sum(weighted, axis=-1)
        self._examples.assign_add(ops.sum(weighted, axis=0))
        self._right.assign_add(ops.einsum("bc,bsc->sc", weighted, given))
        self._answered.assign_add(ops.einsum("b,bsc->sc", weights, given))

    def result(self) -> dict[str, Any]:
        of_each = ops.divide_no_nan(self._right, self._examples)
        occurring = ops.sum(ops.cast(self._examples > 0, self.dtype))
        balanced = ops.divide_no_nan(ops.sum(of_each, axis=-1), occurring)
        return {f"{self.name}_{size}": balanced[i] for i, size in enumerate(self._sizes)}

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
            for label in range(self._classes)
        ]

    def _shares(self, parts: Any, wholes: Any) -> dict[str, float | None]:
        wholes = np.broadcast_to(wholes, parts.shape)
        return {
            str(size): float(part / whole) if whole else None
            for size, part, whole in zip(self._sizes, parts, wholes, strict=True)
        }


@keras.saving.register_keras_serializable("hne_tf")
class LeafAccuracy(_MeanPerColumn):
    """Accuracy of every leaf by itself, `leaf_accuracy_0 …`.

    Args:
      leaves: number of leaves, all of the logits' by default.
    """

    def __init__(
        self, leaves: int | None = None, name: str = "leaf_accuracy", **kwargs: Any
    ) -> None:
        super().__init__(name, None if leaves is None else range(leaves), **kwargs)
        self._leaves = leaves

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "leaves": self._leaves}

    def _columns_of(self, leaves: int) -> tuple[int, ...]:
        return tuple(range(leaves))

    def _values(self, labels, leaf_logits):
        return _hits(labels, leaf_logits)


@keras.saving.register_keras_serializable("hne_tf")
class Disagreement(_MeanPerColumn):
    """Share of pairs among the first leaves that predict different classes; 0 for one leaf.

    Args:
      sizes: ensemble sizes, as for `EnsembleAccuracy`.
    """

    def __init__(
        self, sizes: Sequence[int] | None = None, name: str = "disagreement", **kwargs: Any
    ) -> None:
        super().__init__(name, sizes, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sizes": self._given}

    def _values(self, labels, leaf_logits):
        votes = ops.one_hot(ops.argmax(leaf_logits, axis=-1), leaf_logits.shape[-1])
        columns = []
        for size in self._columns:
            counts = ops.sum(votes[:, :size], axis=1)
            agreeing = ops.sum(counts * (counts - 1), axis=-1)
            pairs = max(1, size * (size - 1))
            columns.append((size * (size - 1) - agreeing) / pairs)
        return ops.stack(columns, axis=1)


@keras.saving.register_keras_serializable("hne_tf")
class LeafVariance(_MeanPerColumn):
    """How far the probabilities of the first leaves lie apart; 0 for one leaf.

    Mean over examples of the sum over classes of the variance over leaves. It is
    what averaging their probabilities takes off the mean leaf's Brier score.

    Args:
      sizes: ensemble sizes, as for `EnsembleAccuracy`.
    """

    def __init__(
        self, sizes: Sequence[int] | None = None, name: str = "variance", **kwargs: Any
    ) -> None:
        super().__init__(name, sizes, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sizes": self._given}

    def _values(self, labels, leaf_logits):
        probabilities = ops.softmax(leaf_logits, axis=-1)
        return ops.stack(
            [ops.sum(ops.var(probabilities[:, :size], axis=1), axis=-1) for size in self._columns],
            axis=1,
        )


def _hits(labels: Any, scores: Any) -> Any:
    """1 where the best of `[batch, k, classes]` is the label, else 0: `[batch, k]`."""
    best = ops.cast(ops.argmax(scores, axis=-1), "int32")
    right = class_numbers(labels, scores.shape[-1])
    return ops.cast(ops.equal(best, right[:, None]), "float32")
