"""One pass over a split gives every figure of every ensemble size."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from hne_tf.data import labelled
from hne_tf.data.labelled import Labelled
from hne_tf.evaluation import calibration, cost, early_stopping, measuring
from hne_tf.evaluation.early_stopping import AnswerGatherer, Answers
from hne_tf.exits import Exits
from hne_tf.exported.uncertainty import stopping
from hne_tf.metrics import (
    BalancedAccuracy,
    BrierScore,
    Disagreement,
    EnsembleAccuracy,
    ExpectedCalibrationError,
    LeafAccuracy,
    LeafVariance,
    LostAnswers,
    NegativeLogLikelihood,
)
from hne_tf.models import averaging
from hne_tf.models.averaging import ensemble_log_probabilities
from hne_tf.models.ensemble import TreeEnsemble

_Metric = TypeVar("_Metric", bound=keras.metrics.Metric)

# Figures per ensemble size, in the order of tables.
FIGURES = (
    *("accuracy", "balanced_accuracy", "nll", "ece", "brier"),
    *("disagreement", "variance", "lost"),
)

# How networks with exits answer, alone and together.
_EXIT_AVERAGES = ("last", "logits")

_BATCH_SIZE = 256


def evaluate(
    model: TreeEnsemble,
    data: Labelled,
    validation: Labelled | None = None,
    sizes: Sequence[int] | None = None,
    batch_size: int = _BATCH_SIZE,
    metrics: Sequence[keras.metrics.Metric] = (),
    coverage: float = 0.9,
    temperatures: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Measures every ensemble size of a model in one pass over labelled images.

    Args:
      model: trained in whatever way.
      data: images and labels, see `labelled.batches`.
      validation: other images, on which thresholds of early stopping, temperatures and
        limits of prediction sets are fitted.
      sizes: ensemble sizes, `tree.sizes` by default.
      batch_size: images per call.
      metrics: others of leaf logits, to be measured besides.
      coverage: probability that a prediction set holds the label.
      temperatures: of each size from 1 to N, that answers have when thresholds of early
        stopping are applied.

    Returns:
      `sizes`: a row per ensemble size with its `size`, `accuracy`,
      `balanced_accuracy`, `nll` (nats), `ece`, `brier`, `disagreement`, `variance` (see
      `metrics.LeafVariance`), `lost` (see `metrics.LostAnswers`), `mean_member_accuracy`
      of the leaves that answer, each alone, the ensemble's `gain` over it,
      `multiply_adds`, `parameters` and `reliability`, see
      `metrics.ExpectedCalibrationError.diagrams`;
      `sizes_by_average`: for a network with exits the rows for each way in which
      they answer, `"last"`, the exit alone, and `"logits"`, the running ensemble
      of the exits, whichever the run itself has; empty for a tree; `classes`: a row
      per class with its `name` and the figures of `BalancedAccuracy.by_class`;
      `leaf_accuracy`: one per leaf; `mean_leaf_accuracy`; `early_stopping`, by
      confidence, and `early_stopping_by_rule`: see `early_stopping.calibrated`, None
      without `validation`; `calibration`: see `calibration.measured`, likewise;
      `metrics`: the results of those given; and `examples`, the number measured.

    Raises:
      InputError: for data that the model cannot take, or a coverage outside (0, 1).

    Example:
      >>> evaluate(model, (x_test, y_test))["sizes"][0]["accuracy"]
      0.9639
    """
    calibration.check_coverage(coverage)
    tree, average = model.tree, model.average
    sizes = tuple(sizes or tree.sizes)
    averages = dict.fromkeys([average, *(_EXIT_AVERAGES if isinstance(tree, Exits) else ())])
    names = model.images.class_names
    by_average = {each: _size_metrics(sizes, each) for each in averages}
    ours = [*itertools.chain(*by_average.values()), LeafAccuracy(tree.leaves)]
    predict = inference(model)
    gathered = _AnswerObserver(tree.leaves, average, temperatures)
    batches = labelled.batches(data, model.images.shape, batch_size)
    measured = measuring.measure(predict, batches, [*ours, *metrics], gathered)
    answered = gathered.result()
    by_rule = calibrated = None
    if validation is not None:
        observed = _observed(model, validation, batch_size, predict, temperatures)
        calibrated = calibration.measured(observed.split(), gathered.split(), sizes, coverage)
        fitted_on = observed.result()
        costs = [each.multiply_adds for each in cost.per_size_walked(model).values()]
        by_rule = {
            rule: early_stopping.calibrated(fitted_on, answered, costs, tree.sizes, rule)
            for rule in stopping.RULES
        }
    leaves = [measured[f"leaf_accuracy_{leaf}"] for leaf in range(tree.leaves)]
    rows = {
        each: _rows(
            model,
            sizes,
            each,
            measured,
            _of(ExpectedCalibrationError, by_average[each]).diagrams(),
        )
        for each in averages
    }
    by_class = _of(BalancedAccuracy, by_average[average]).by_class()
    return {
        "examples": len(answered.correct),
        "sizes": rows[average],
        "sizes_by_average": rows if len(rows) > 1 else {},
        "classes": [{"name": name, **row} for name, row in zip(names, by_class, strict=True)],
        "leaf_accuracy": leaves,
        "mean_leaf_accuracy": sum(leaves) / len(leaves),
        "early_stopping": by_rule and by_rule["confidence"],
        "early_stopping_by_rule": by_rule,
        "calibration": calibrated,
        "metrics": measuring.results(metrics),
    }


def _size_metrics(sizes: Sequence[int], average: str) -> list[keras.metrics.Metric]:
    """Metrics for the `FIGURES` of each size, which begin with the average's name."""
    return [
        EnsembleAccuracy(sizes, average, f"{average}_accuracy"),
        BalancedAccuracy(sizes, average, f"{average}_balanced_accuracy"),
        NegativeLogLikelihood(sizes, average, f"{average}_nll"),
        ExpectedCalibrationError(sizes, average=average, name=f"{average}_ece"),
        BrierScore(sizes, average, f"{average}_brier"),
        Disagreement(sizes, f"{average}_disagreement"),
        LeafVariance(sizes, f"{average}_variance"),
        LostAnswers(sizes, average, f"{average}_lost"),
    ]


def _of(kind: type[_Metric], metrics: Sequence[keras.metrics.Metric]) -> _Metric:
    """The one metric of a kind."""
    (found,) = (each for each in metrics if isinstance(each, kind))
    return found


def _rows(
    model: TreeEnsemble,
    sizes: Sequence[int],
    average: str,
    measured: Mapping[str, float],
    diagrams: Mapping[int, Any],
) -> list[dict[str, Any]]:
    """A row per size of what `_size_metrics` measured, and of costs."""
    costs = cost.per_size(model, sizes, average)
    rows = []
    for size in sizes:
        members = averaging.leaves(size, average)
        mean_member = sum(measured[f"leaf_accuracy_{leaf}"] for leaf in members) / len(members)
        figures = {figure: measured[f"{average}_{figure}_{size}"] for figure in FIGURES}
        rows.append(
            {
                "size": size,
                **figures,
                "mean_member_accuracy": mean_member,
                "gain": figures["accuracy"] - mean_member,
                "multiply_adds": costs[size].multiply_adds,
                "parameters": costs[size].parameters,
                "reliability": diagrams[size],
            }
        )
    return rows


def answers(
    model: TreeEnsemble,
    data: Labelled,
    batch_size: int = _BATCH_SIZE,
    predict: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> Answers:
    """How sure the ensembles of the first 1 to N leaves are, and whether they are right.

    Args:
      model: trained in whatever way.
      data: images and labels, see `labelled.batches`.
      batch_size: images per call.
      predict: `inference` of the model, if there is one already.
    """
    return _observed(model, data, batch_size, predict or inference(model)).result()


def split_answers(model: TreeEnsemble, data: Labelled) -> calibration.SplitAnswers:
    """Log-probabilities of the ensembles of the first 1 to N leaves, to fit calibration on.

    Args:
      model: trained in whatever way.
      data: images and labels, see `labelled.batches`.
    """
    gathered = calibration.SplitGatherer()
    sizes = range(1, model.tree.leaves + 1)

    def observe(labels: Any, leaf_logits: Any) -> None:
        scores = ensemble_log_probabilities(leaf_logits, sizes, model.average)
        gathered.add(*map(keras.ops.convert_to_numpy, (labels, scores)))

    batches = labelled.batches(data, model.images.shape, _BATCH_SIZE)
    measuring.measure(inference(model), batches, [], observe)
    return gathered.result()


def _observed(
    model: TreeEnsemble,
    data: Labelled,
    batch_size: int,
    predict: Callable[[tf.Tensor], tf.Tensor],
    temperatures: Sequence[float] | None = None,
) -> "_AnswerObserver":
    """What the model answers to a split."""
    observer = _AnswerObserver(model.tree.leaves, model.average, temperatures)
    batches = labelled.batches(data, model.images.shape, batch_size)
    measuring.measure(predict, batches, [], observer)
    return observer


class _AnswerObserver:
    """An observer that gathers the answers of all sizes."""

    def __init__(self, leaves: int, average: str, temperatures: Sequence[float] | None) -> None:
        self._temperatures = temperatures
        self._sizes = range(1, leaves + 1)
        self._average = average
        answers, split = AnswerGatherer(), calibration.SplitGatherer()
        self._gatherers = answers, split
        self.result, self.split = answers.result, split.result

    def __call__(self, labels: Any, leaf_logits: Any) -> None:
        scores = ensemble_log_probabilities(leaf_logits, self._sizes, self._average)
        outputs = averaging.contribution(leaf_logits, self._average)
        labels, scores, outputs = map(keras.ops.convert_to_numpy, (labels, scores, outputs))
        answers, split = self._gatherers
        split.add(labels, scores)
        if self._temperatures is not None:
            scores = calibration.with_temperatures(scores, self._temperatures)
        answers.add(labels, np.exp(scores), outputs)


def inference(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """The model as a graph function of images, in inference mode."""
    # Of any number of images, so that a last, smaller batch is not traced again.
    images = tf.TensorSpec(model.inputs[0].shape, model.inputs[0].dtype)
    return tf.function(
        lambda images: model(images, training=False), input_signature=[images], autograph=False
    )
