"""Keras metrics over leaf logits, one value per ensemble size.

Every metric is updated with labels `[batch]` and leaf logits `[batch, leaves,
classes]`; `result()` is a dictionary such as `{"accuracy_1": …, "accuracy_2": …}`.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from hne_tf.errors import InputError
from hne_tf.models.averaging import check_average, ensemble_log_probabilities


class _MeanPerColumn(keras.metrics.Metric):
    """Running mean over examples of a row of values, each with its own name."""

    def __init__(self, name: str, columns: Sequence[int], **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self._columns = tuple(columns)
        self._total = self.add_weight(
            shape=(len(self._columns),), initializer="zeros", name="total"
        )
        self._count = self.add_weight(shape=(), initializer="zeros", name="count")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        labels = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        values = ops.cast(self._values(labels, y_pred), self.dtype)
        if sample_weight is None:
            weights = ops.ones((ops.shape(values)[0],), self.dtype)
        else:
            weights = ops.cast(ops.reshape(sample_weight, (-1,)), self.dtype)
        self._total.assign_add(ops.sum(values * weights[:, None], axis=0))
        self._count.assign_add(ops.sum(weights))

    def _values(self, labels: Any, leaf_logits: Any) -> Any:
        """`[batch, columns]` from labels `[batch]` and `[batch, leaves, classes]`."""
        raise NotImplementedError

    def result(self) -> dict[str, Any]:
        means = ops.divide_no_nan(self._total, self._count)
        return {f"{self.name}_{column}": means[i] for i, column in enumerate(self._columns)}


class _PerSize(_MeanPerColumn):
    """A mean per ensemble size of what the ensembles' log-probabilities give.

    Args:
      sizes: ensemble sizes, `tree.sizes`.
      average: see `averaging.ensemble_log_probabilities`.
    """

    def __init__(self, sizes: Sequence[int], average: str, name: str, **kwargs: Any) -> None:
        super().__init__(name, sizes, **kwargs)
        self._average = check_average(average)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sizes": self._columns, "average": self._average}

    def _values(self, labels, leaf_logits):
        log_probabilities = ensemble_log_probabilities(leaf_logits, self._columns, self._average)
        return self._score(labels, log_probabilities)

    def _score(self, labels: Any, log_probabilities: Any) -> Any:
        """`[batch, sizes]` from labels `[batch]` and `[batch, sizes, classes]`."""
        raise NotImplementedError


@keras.saving.register_keras_serializable("hne_tf")
class EnsembleAccuracy(_PerSize):
    """Share of examples whose most probable class is the label. See `_PerSize`."""

    def __init__(
        self,
        sizes: Sequence[int],
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
        self, sizes: Sequence[int], average: str = "logits", name: str = "nll", **kwargs: Any
    ) -> None:
        super().__init__(sizes, average, name, **kwargs)

    def _score(self, labels, log_probabilities):
        return -ops.einsum("bsc,bc->bs", log_probabilities, _one_hot(labels, log_probabilities))


@keras.saving.register_keras_serializable("hne_tf")
class BrierScore(_PerSize):
    """Mean squared distance of probabilities to the one-hot label, summed over classes (0..2).

    Brier, "Verification of forecasts expressed in terms of probability", 1950.
    """

    def __init__(
        self, sizes: Sequence[int], average: str = "logits", name: str = "brier", **kwargs: Any
    ) -> None:
        super().__init__(sizes, average, name, **kwargs)

    def _score(self, labels, log_probabilities):
        error = ops.exp(log_probabilities) - _one_hot(labels, log_probabilities)[:, None]
        return ops.sum(ops.square(error), axis=-1)


@keras.saving.register_keras_serializable("hne_tf")
class ExpectedCalibrationError(keras.metrics.Metric):
    """Gap between confidence and accuracy, over equally wide bins of confidence.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3.

    Args:
      sizes: ensemble sizes, `tree.sizes`.
      bins: number of bins between 0 and 1; a confidence on an edge belongs to
        the bin below it.
      average: see `averaging.ensemble_log_probabilities`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        bins: int = 15,
        average: str = "logits",
        name: str = "ece",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if bins < 1:
            raise InputError(f"bins must be 1 or more, got {bins}")
        self._sizes = tuple(sizes)
        self._bins = bins
        self._average = check_average(average)
        # Sums over the examples of each bin.
        shape = (len(self._sizes), bins)
        self._counts = self.add_weight(shape=shape, initializer="zeros", name="counts")
        self._confidence = self.add_weight(shape=shape, initializer="zeros", name="confidence")
        self._hits = self.add_weight(shape=shape, initializer="zeros", name="hits")

    def get_config(self) -> dict[str, Any]:
        settings = {"sizes": self._sizes, "bins": self._bins, "average": self._average}
        return {**super().get_config(), **settings}

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        if sample_weight is not None:
            raise InputError("expected calibration error takes no sample weights")
        labels = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        log_probabilities = ensemble_log_probabilities(y_pred, self._sizes, self._average)
        confidence = ops.max(ops.exp(log_probabilities), axis=-1)
        hits = _hits(labels, log_probabilities)
        bins = ops.cast(ops.ceil(confidence * self._bins), "int32") - 1
        membership = ops.one_hot(ops.clip(bins, 0, self._bins - 1), self._bins, dtype=hits.dtype)
        self._counts.assign_add(ops.sum(membership, axis=0))
        self._confidence.assign_add(ops.einsum("bs,bsk->sk", confidence, membership))
        self._hits.assign_add(ops.einsum("bs,bsk->sk", hits, membership))

    def result(self) -> dict[str, Any]:
        # A bin's share of the error is its gap, weighted by its share of the examples.
        gaps = ops.sum(ops.abs(self._confidence - self._hits), axis=-1)
        errors = ops.divide_no_nan(gaps, ops.sum(self._counts, axis=-1))
        return {f"{self.name}_{size}": errors[i] for i, size in enumerate(self._sizes)}

    def diagrams(self) -> dict[int, dict[str, list[float | None]]]:
        """The reliability diagram of each size, which the error sums up.

        Returns:
          Per size, from the least confident bin to the most: `count`, the bin's
          examples, and their mean `confidence` and `accuracy`, None where it has none.
        """
        sums = [ops.convert_to_numpy(w) for w in (self._counts, self._confidence, self._hits)]
        diagrams = {}
        for size, counts, *rows in zip(self._sizes, *sums, strict=True):
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
      leaves: number of leaves.
    """

    def __init__(self, leaves: int, name: str = "leaf_accuracy", **kwargs: Any) -> None:
        super().__init__(name, range(leaves), **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "leaves": len(self._columns)}

    def _values(self, labels, leaf_logits):
        return _hits(labels, leaf_logits)


@keras.saving.register_keras_serializable("hne_tf")
class Disagreement(_MeanPerColumn):
    """Share of pairs among the first leaves that predict different classes; 0 for one leaf.

    Args:
      sizes: ensemble sizes, `tree.sizes`.
    """

    def __init__(self, sizes: Sequence[int], name: str = "disagreement", **kwargs: Any) -> None:
        super().__init__(name, sizes, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sizes": self._columns}

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
      sizes: ensemble sizes, `tree.sizes`.
    """

    def __init__(self, sizes: Sequence[int], name: str = "variance", **kwargs: Any) -> None:
        super().__init__(name, sizes, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sizes": self._columns}

    def _values(self, labels, leaf_logits):
        probabilities = ops.softmax(leaf_logits, axis=-1)
        return ops.stack(
            [ops.sum(ops.var(probabilities[:, :size], axis=1), axis=-1) for size in self._columns],
            axis=1,
        )


def _one_hot(labels: Any, log_probabilities: Any) -> Any:
    return ops.one_hot(labels, log_probabilities.shape[-1], dtype=log_probabilities.dtype)


def _hits(labels: Any, scores: Any) -> Any:
    """1 where the best of `[batch, k, classes]` is the label, else 0: `[batch, k]`."""
    best = ops.cast(ops.argmax(scores, axis=-1), "int32")
    return ops.cast(ops.equal(best, labels[:, None]), "float32")
