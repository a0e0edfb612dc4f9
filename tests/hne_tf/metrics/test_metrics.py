import itertools

import keras
import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf
from scipy import special

from hne_tf import metrics, objectives
from hne_tf.errors import InputError
from hne_tf.tree import Tree

SIZES = (1, 2, 3, 6)
LEAVES = 6
CLASSES = 5
AVERAGES = ("logits", "probabilities", "sum")
EXAMPLES = 211

every_average = pytest.mark.parametrize("average", AVERAGES)


def examples():
    """Labels and leaf logits, the label's logit raised so that accuracy is about a half."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, EXAMPLES)
    common = rng.normal(0, 1, (EXAMPLES, 1, CLASSES)) + 1.5 * np.eye(CLASSES)[labels][:, None]
    leaf_logits = common + rng.normal(0, 1.5, (EXAMPLES, LEAVES, CLASSES))
    return labels, leaf_logits.astype(np.float32)


LABELS, LEAF_LOGITS = examples()


def probabilities(size, average):
    first = LEAF_LOGITS[:, :size].astype(np.float64)
    if average == "probabilities":
        return special.softmax(first, axis=-1).mean(axis=1)
    together = {"logits": np.mean, "sum": np.sum}[average]
    return special.softmax(together(first, axis=1), axis=-1)


def measured(metric, weights=None):
    """The metric's values after uneven batches."""
    for start, end in itertools.pairwise([0, 1, 8, 100, EXAMPLES]):
        part = slice(start, end)
        metric.update_state(
            LABELS[part], LEAF_LOGITS[part], None if weights is None else weights[part]
        )
    return {name: float(value) for name, value in metric.result().items()}


def assert_measures(metric, expected, **options):
    """Compares names, order and values."""
    got = measured(metric, **options)
    assert list(got) == list(expected)
    np.testing.assert_allclose(list(got.values()), list(expected.values()), rtol=1e-4, atol=1e-6)


@every_average
def test_accuracy_equals_sklearn(average):
    expected = {
        f"accuracy_{size}": sklearn.metrics.accuracy_score(
            LABELS, probabilities(size, average).argmax(axis=-1)
        )
        for size in SIZES
    }
    assert 0.3 < expected["accuracy_1"] < expected["accuracy_6"] < 0.95
    assert_measures(metrics.EnsembleAccuracy(SIZES, average), expected)


@every_average
def test_negative_log_likelihood_equals_sklearn(average):
    expected = {
        f"nll_{size}": sklearn.metrics.log_loss(LABELS, probabilities(size, average))
        for size in SIZES
    }
    assert_measures(metrics.NegativeLogLikelihood(SIZES, average), expected)


@every_average
def test_brier_score_sums_squared_errors_over_classes(average):
    expected = {}
    for size in SIZES:
        # scikit-learn scores one class at a time.
        expected[f"brier_{size}"] = sum(
            sklearn.metrics.brier_score_loss(k == LABELS, probabilities(size, average)[:, k])
            for k in range(CLASSES)
        )
    assert_measures(metrics.BrierScore(SIZES, average), expected)


def test_brier_score_of_a_certain_error_is_two():
    metric = metrics.BrierScore((1,))
    metric.update_state([0], np.array([[[-1e4, 1e4]]], np.float32))
    assert float(metric.result()["brier_1"]) == pytest.approx(2.0)


@pytest.mark.parametrize("bins", [1, 4, 15])
@every_average
def test_calibration_error_equals_a_loop_over_bins(average, bins):
    expected = {}
    for size in SIZES:
        p = probabilities(size, average)
        confidence, hit = p.max(axis=-1), p.argmax(axis=-1) == LABELS
        error = 0.0
        for k in range(bins):
            inside = (k / bins < confidence) & (confidence <= (k + 1) / bins)
            if inside.any():
                gap = abs(hit[inside].mean() - confidence[inside].mean())
                error += inside.sum() / EXAMPLES * gap
        expected[f"ece_{size}"] = error
    assert_measures(metrics.ExpectedCalibrationError(SIZES, bins, average), expected)


def test_calibration_has_fifteen_bins_unless_told():
    explicit = metrics.ExpectedCalibrationError(SIZES, bins=15)
    assert_measures(metrics.ExpectedCalibrationError(SIZES), measured(explicit))


def test_certain_answers_belong_to_the_last_bin():
    """Certain and right, almost certain and wrong: one bin, so the gaps cancel."""
    metric = metrics.ExpectedCalibrationError((1,), bins=10)
    p = 0.95
    leaf_logits = np.array([[[0.0, -1e4]], [[np.log(p), np.log(1 - p)]]], np.float32)
    metric.update_state([0, 1], leaf_logits)
    assert float(metric.result()["ece_1"]) == pytest.approx((1 + p) / 2 - 0.5, abs=1e-6)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    """Half certain and right, three quarters certain and wrong: two bins, no cancelling."""
    metric = metrics.ExpectedCalibrationError((1,), bins=2)
    leaf_logits = np.array([[[0.0, 0.0]], [[np.log(3.0), 0.0]]], np.float32)
    metric.update_state([0, 1], leaf_logits)
    assert float(metric.result()["ece_1"]) == pytest.approx((0.5 + 0.75) / 2, abs=1e-6)


@every_average
def test_balanced_accuracy_equals_sklearn(average):
    metric = metrics.BalancedAccuracy(SIZES, average)
    answers = {size: probabilities(size, average).argmax(axis=1) for size in SIZES}
    expected = {
        f"balanced_accuracy_{size}": sklearn.metrics.balanced_accuracy_score(LABELS, answers[size])
        for size in SIZES
    }
    assert_measures(metric, expected)
    for size in SIZES:
        precision, recall, _, examples = sklearn.metrics.precision_recall_fscore_support(
            LABELS, answers[size]
        )
        rows = metric.by_class()
        assert [row["examples"] for row in rows] == examples.tolist()
        np.testing.assert_allclose([row["accuracy"][str(size)] for row in rows], recall, rtol=1e-5)
        got = [row["precision"][str(size)] for row in rows]
        np.testing.assert_allclose(got, precision, rtol=1e-5)


def test_classes_that_do_not_occur_do_not_count():
    metric = metrics.BalancedAccuracy([1])
    leaf_logits = 5 * np.eye(4, dtype=np.float32)[[0, 0, 1, 3]][:, None]
    metric.update_state([0, 0, 0, 1], leaf_logits)
    # Two of three right of class 0, none of class 1.
    assert float(metric.result()["balanced_accuracy_1"]) == pytest.approx((2 / 3 + 0) / 2)
    assert [row["examples"] for row in metric.by_class()] == [3, 1, 0, 0]
    assert [row["accuracy"]["1"] for row in metric.by_class()] == [
        pytest.approx(2 / 3),
        0,
        None,
        None,
    ]
    assert [row["precision"]["1"] for row in metric.by_class()] == [1, 0, None, 0]


@every_average
def test_diagrams_hold_what_the_calibration_error_sums_up(average):
    bins = 8
    metric = metrics.ExpectedCalibrationError(SIZES, bins, average)
    errors = measured(metric)
    diagrams = metric.diagrams()
    assert list(diagrams) == list(SIZES)
    for size, diagram in diagrams.items():
        p = probabilities(size, average)
        confidence, hits = p.max(axis=-1), p.argmax(axis=-1) == LABELS
        edges = np.linspace(0, 1, bins + 1)
        for low, high, count, mean, accuracy in zip(
            edges, edges[1:], *diagram.values(), strict=False
        ):
            inside = (confidence > low) & (confidence <= high)
            assert count == inside.sum()
            if count:
                assert mean == pytest.approx(confidence[inside].mean(), abs=1e-5)
                assert accuracy == pytest.approx(hits[inside].mean(), abs=1e-5)
            else:
                assert mean is accuracy is None
        gaps = [
            count * abs(mean - accuracy)
            for count, mean, accuracy in zip(*diagram.values(), strict=True)
            if count
        ]
        assert errors[f"ece_{size}"] == pytest.approx(sum(gaps) / EXAMPLES, abs=1e-6)


def test_variance_is_what_averaging_takes_off_the_mean_leafs_brier_score():
    def brier(p):
        return ((p - np.eye(CLASSES)[LABELS]) ** 2).sum(axis=-1).mean()

    leaves = special.softmax(LEAF_LOGITS.astype(np.float64), axis=-1)
    expected = {
        f"variance_{size}": np.mean([brier(leaves[:, leaf]) for leaf in range(size)])
        - brier(leaves[:, :size].mean(axis=1))
        for size in SIZES
    }
    assert expected["variance_6"] > 0.05
    assert_measures(metrics.LeafVariance(SIZES), expected)


@every_average
def test_lost_answers_are_those_that_were_right_with_fewer_leaves(average):
    right = np.stack(
        [probabilities(n, average).argmax(axis=-1) == LABELS for n in range(1, LEAVES + 1)], axis=1
    )
    expected = {
        f"lost_{size}": np.mean([row[: size - 1].any() and not row[size - 1] for row in right])
        for size in SIZES
    }
    assert expected["lost_1"] == 0
    assert expected["lost_6"] > 0.02
    # Size 5 is no column, but what it gets right counts.
    assert any(row[4] and not row[[0, 1, 2, 5]].any() for row in right)
    assert_measures(metrics.LostAnswers(SIZES, average), expected)


def test_leaf_accuracy_equals_sklearn_per_leaf():
    expected = {
        f"leaf_accuracy_{leaf}": sklearn.metrics.accuracy_score(
            LABELS, LEAF_LOGITS[:, leaf].argmax(axis=-1)
        )
        for leaf in range(LEAVES)
    }
    assert len(set(expected.values())) == LEAVES
    assert_measures(metrics.LeafAccuracy(LEAVES), expected)


def test_disagreement_equals_a_loop_over_pairs():
    votes = LEAF_LOGITS.argmax(axis=-1)
    expected = {"disagreement_1": 0.0}
    for size in SIZES[1:]:
        pairs = [
            np.mean(votes[:, i] != votes[:, j]) for i in range(size) for j in range(i + 1, size)
        ]
        expected[f"disagreement_{size}"] = np.mean(pairs)
    assert_measures(metrics.Disagreement(SIZES), expected)


def test_equal_leaves_never_disagree_and_different_ones_always():
    same, different = np.zeros((1, 3, 3), np.float32), np.eye(3, dtype=np.float32)[None]
    for leaf_logits, expected in ((same, 0.0), (different, 1.0)):
        metric = metrics.Disagreement((2, 3))
        metric.update_state([0], leaf_logits)
        assert [float(value) for value in metric.result().values()] == [expected, expected]


MEANS = {
    "accuracy": lambda: metrics.EnsembleAccuracy(SIZES),
    "nll": lambda: metrics.NegativeLogLikelihood(SIZES),
    "brier": lambda: metrics.BrierScore(SIZES),
    "leaf_accuracy": lambda: metrics.LeafAccuracy(LEAVES),
    "balanced_accuracy": lambda: metrics.BalancedAccuracy(SIZES),
    "disagreement": lambda: metrics.Disagreement(SIZES),
    "variance": lambda: metrics.LeafVariance(SIZES),
    "lost": lambda: metrics.LostAnswers(SIZES),
}
EVERY_METRIC = {**MEANS, "ece": lambda: metrics.ExpectedCalibrationError(SIZES)}

every_mean = pytest.mark.parametrize("build", MEANS.values(), ids=MEANS)
every_metric = pytest.mark.parametrize("build", EVERY_METRIC.values(), ids=EVERY_METRIC)


def measured_at_once(metric, labels, leaf_logits):
    metric.update_state(labels, leaf_logits)
    return {name: float(value) for name, value in metric.result().items()}


@every_metric
def test_reset_forgets_everything(build):
    metric = build()
    first = measured(metric)
    assert set(first.values()) != {0.0}
    metric.reset_state()
    assert {float(value) for value in metric.result().values()} == {0.0}
    assert_measures(metric, first)


@every_mean
def test_whole_weights_count_examples_repeatedly(build):
    weights = np.random.default_rng(2).integers(0, 4, EXAMPLES)
    repeated = np.repeat(np.arange(EXAMPLES), weights)
    expected = measured_at_once(build(), LABELS[repeated], LEAF_LOGITS[repeated])
    assert list(expected.values()) != pytest.approx(list(measured(build()).values()), rel=1e-3)
    assert_measures(build(), expected, weights=weights)


@every_metric
def test_labels_may_come_as_a_column_of_floats(build):
    column = LABELS[:, None].astype(np.float32)
    assert_measures(build(), measured_at_once(build(), column, LEAF_LOGITS))


def test_fit_records_every_size():
    model = keras.Sequential([keras.Input((LEAVES, CLASSES)), keras.layers.Dense(CLASSES)])
    model.layers[0].set_weights([np.eye(CLASSES), np.zeros(CLASSES)])
    model.compile(
        keras.optimizers.SGD(0.0),
        loss=lambda labels, leaf_logits: keras.ops.sum(leaf_logits, axis=(1, 2)),
        metrics=[metrics.EnsembleAccuracy(SIZES), metrics.ExpectedCalibrationError(SIZES)],
    )
    history = model.fit(
        LEAF_LOGITS, LABELS, validation_data=(LEAF_LOGITS, LABELS), batch_size=50, verbose=0
    ).history
    expected = measured(metrics.EnsembleAccuracy(SIZES))
    expected |= measured(metrics.ExpectedCalibrationError(SIZES))
    for name, value in expected.items():
        assert history[name] == pytest.approx([value], abs=1e-5)
        assert history[f"val_{name}"] == pytest.approx([value], abs=1e-5)


@pytest.mark.parametrize(
    "build",
    [
        metrics.EnsembleAccuracy,
        metrics.NegativeLogLikelihood,
        metrics.BrierScore,
        metrics.ExpectedCalibrationError,
    ],
)
def test_unknown_average_is_named(build):
    with pytest.raises(InputError, match=r"one of logits, probabilities, last, .*got 'median'"):
        build(SIZES, average="median")


def test_bad_use_of_calibration_error():
    with pytest.raises(InputError, match="bins must be 1 or more, got 0"):
        metrics.ExpectedCalibrationError(SIZES, bins=0)
    with pytest.raises(InputError, match="takes no sample weights"):
        metrics.ExpectedCalibrationError(SIZES).update_state(LABELS, LEAF_LOGITS, LABELS)


def test_a_compiled_model_can_be_saved_with_its_metrics(tmp_path):
    sizes = (1, 2)
    measures = [
        metrics.EnsembleAccuracy(sizes, "probabilities"),
        metrics.NegativeLogLikelihood(sizes),
        metrics.BrierScore(sizes),
        metrics.ExpectedCalibrationError(sizes, bins=7),
        metrics.Disagreement(sizes),
        metrics.LeafVariance(sizes),
        metrics.LostAnswers(sizes),
        metrics.LeafAccuracy(2),
    ]
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Reshape((2, 3))(keras.layers.Dense(6)(inputs)))
    model.compile(loss=objectives.Independent(), metrics=measures)
    x, y = np.random.default_rng(0).normal(size=(8, 3)), np.arange(8) % 3
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(expected)


LAZY = [
    metrics.EnsembleAccuracy,
    metrics.BalancedAccuracy,
    metrics.NegativeLogLikelihood,
    metrics.BrierScore,
    metrics.ExpectedCalibrationError,
    metrics.Disagreement,
    metrics.LeafVariance,
    metrics.LostAnswers,
]


@pytest.mark.parametrize("kind", LAZY, ids=lambda kind: kind.__name__)
def test_sizes_are_those_of_a_tree_by_default(kind):
    expected = measured(kind(Tree((LEAVES,)).sizes))
    metric = kind()
    # Before the leaves are known there is nothing to tell, and nothing to forget.
    assert metric.result() == {}
    metric.reset_state()
    assert measured(metric) == expected
    copy = kind.from_config(metric.get_config())
    assert measured(copy) == expected


def test_all_leaves_are_measured_by_default():
    assert measured(metrics.LeafAccuracy()) == measured(metrics.LeafAccuracy(LEAVES))


@pytest.mark.parametrize(
    "name", ["accuracy", "balanced_accuracy", "nll", "brier", "ece", "leaf_accuracy"]
)
def test_one_hot_labels_are_labels(name):
    classes = LEAF_LOGITS.shape[-1]
    metric = EVERY_METRIC[name]()
    metric.update_state(np.eye(classes, dtype=np.float32)[LABELS], LEAF_LOGITS)
    expected = EVERY_METRIC[name]()
    expected.update_state(LABELS, LEAF_LOGITS)
    for key, value in expected.result().items():
        np.testing.assert_allclose(metric.result()[key], value, rtol=1e-6)


def test_lazy_metrics_in_a_loop_over_two_devices():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        metric = metrics.EnsembleAccuracy()
        metric.build(LEAF_LOGITS.shape)
    update = tf.function(lambda labels, logits: strategy.run(metric.update_state, (labels, logits)))

    def part(values):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(values[context.replica_id_in_sync_group :: 2])
        )

    update(part(LABELS), part(LEAF_LOGITS))
    expected = measured(metrics.EnsembleAccuracy())
    assert {name: float(value) for name, value in metric.result().items()} == pytest.approx(
        expected
    )


class TopGap(metrics.PerSize):
    """Gap between the two most probable classes."""

    def score(self, labels, log_probabilities):
        best = keras.ops.top_k(keras.ops.exp(log_probabilities), 2)[0]
        return best[..., 0] - best[..., 1]


def test_a_score_of_one_s_own_is_a_method():
    expected = {}
    for size in SIZES:
        best = np.sort(probabilities(size, "logits"), axis=-1)
        expected[f"top_gap_{size}"] = np.mean(best[:, -1] - best[:, -2])
    assert_measures(TopGap(SIZES), expected)
