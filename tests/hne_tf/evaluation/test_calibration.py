import itertools

import numpy as np
import pytest
import sklearn.metrics
from scipy import optimize, special

from hne_tf.errors import InputError
from hne_tf.evaluation import calibration
from hne_tf.evaluation.calibration import SplitAnswers
from hne_tf.exported.uncertainty import prediction_sets

SIZES, CLASSES = 3, 5
# By which the logits of each size are too large.
OVERCONFIDENCE = np.array([1.0, 2.0, 0.5])


def split(examples, seed):
    """Labels drawn from the probabilities of the logits before they were made too large."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (examples, 1, CLASSES))
    labels = np.array([random.choice(CLASSES, p=special.softmax(row[0])) for row in logits])
    scaled = logits * OVERCONFIDENCE[:, None]
    return SplitAnswers(labels, special.log_softmax(scaled, axis=-1).astype(np.float32))


VALIDATION, TEST = split(4000, 0), split(3000, 1)


def test_temperatures_undo_what_made_logits_too_large():
    found = calibration.fit_temperatures(VALIDATION)
    np.testing.assert_allclose(found, OVERCONFIDENCE, rtol=0.06)


def test_temperatures_are_of_the_least_likelihood_loss():
    found = calibration.fit_temperatures(VALIDATION)
    for size, temperature in enumerate(found, start=1):
        logs = VALIDATION.log_probabilities[:, size - 1]

        def loss(t, logs=logs):
            return sklearn.metrics.log_loss(VALIDATION.labels, special.softmax(logs / t, axis=-1))

        best = optimize.brute(loss, [slice(0.3, 3, 0.05)], finish=None)
        assert loss(temperature) <= loss(best) + 1e-6


def test_rescaled_answers_are_those_of_divided_logits():
    after = calibration.rescaled(TEST, [1.0, 2.0, 0.5])
    expected = special.softmax(TEST.log_probabilities[:, 1] / 2, axis=-1)
    np.testing.assert_allclose(np.exp(after.log_probabilities[:, 1]), expected, rtol=1e-5)
    np.testing.assert_allclose(
        after.log_probabilities[:, 0], TEST.log_probabilities[:, 0], rtol=1e-5
    )


def loop_over(bins, confidence, right):
    """Calibration error over bins, given as lists of images."""
    return sum(
        len(bin_) / len(right) * abs(right[bin_].mean() - confidence[bin_].mean())
        for bin_ in bins
        if len(bin_)
    )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_figures_equal_plain_ones(size):
    probabilities = np.exp(TEST.log_probabilities[:, size - 1])
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == TEST.labels
    found = calibration.figures(TEST, size)
    assert found["nll"] == pytest.approx(sklearn.metrics.log_loss(TEST.labels, probabilities))
    one_hot = np.eye(CLASSES)[TEST.labels]
    assert found["brier"] == pytest.approx(np.sum((probabilities - one_hot) ** 2) / len(right))
    edges = np.linspace(0, 1, 16)
    widths = [
        np.flatnonzero((a < confidence) & (confidence <= b)) for a, b in itertools.pairwise(edges)
    ]
    assert found["ece"] == pytest.approx(loop_over(widths, confidence, right))
    masses = np.array_split(np.argsort(confidence, kind="stable"), 15)
    assert found["adaptive_ece"] == pytest.approx(loop_over(masses, confidence, right))


def test_temperatures_calibrate_other_images():
    after = calibration.rescaled(TEST, calibration.fit_temperatures(VALIDATION))
    for size in (2, 3):
        before, now = (calibration.figures(each, size) for each in (TEST, after))
        assert before["ece"] > 0.1
        assert now["ece"] < 0.03
        assert now["nll"] < before["nll"]


def test_the_surest_images_are_selected():
    logs = np.log([[[0.9, 0.1]], [[0.6, 0.4]], [[0.8, 0.2]], [[0.3, 0.7]]])
    found = calibration.selective_accuracy(SplitAnswers(np.array([0, 1, 0, 1]), logs), 1)
    # By confidence: right, right, right, wrong.
    assert (found["0.5"], found["0.7"], found["0.9"]) == (1.0, 1.0, 0.75)
    assert found.keys() == {*(f"{tenth / 10:g}" for tenth in range(1, 11)), "area"}
    # A tenth of four images is at least one of them.
    assert (found["0.1"], found["1"]) == (1.0, 0.75)
    assert found["area"] == pytest.approx((0 + 0 + 0 + 1 / 4) / 4)


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("method", prediction_sets.METHODS)
def test_sets_cover_what_was_asked(method, coverage):
    limits = calibration.fit_limits(VALIDATION, coverage, method)
    for size in (1, 2, 3):
        probabilities = np.exp(TEST.log_probabilities[:, size - 1])
        found = prediction_sets.sets(method, probabilities, limits[size - 1])
        covered = found[np.arange(len(found)), TEST.labels].mean()
        # The likeliest class alone may be right more often.
        accuracy = (probabilities.argmax(axis=1) == TEST.labels).mean()
        wanted = max(coverage, accuracy) if method == "aps" else coverage
        assert covered == pytest.approx(wanted, abs=0.025)


def test_few_images_make_sets_of_all_classes():
    few = split(5, 2)
    np.testing.assert_array_equal(calibration.fit_limits(few, 0.9, "lac"), np.ones(SIZES))


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1, 2, float("nan")])
def test_bad_coverage(coverage):
    with pytest.raises(InputError, match=f"coverage must lie between 0 and 1, got {coverage}"):
        calibration.fit_limits(VALIDATION, coverage, "lac")


def test_what_is_measured_is_judged_on_other_images():
    found = calibration.measured(VALIDATION, TEST, [1, 3], coverage=0.9)
    assert (found["split"], found["examples"], found["coverage"]) == ("validation", 4000, 0.9)
    temperatures = calibration.fit_temperatures(VALIDATION)
    assert found["temperatures"] == temperatures.tolist()
    assert [row["size"] for row in found["sizes"]] == [1, 3]
    row = found["sizes"][1]
    assert row["temperature"] == temperatures[2]
    assert row["before"] == calibration.figures(TEST, 3)
    assert row["after"] == calibration.figures(calibration.rescaled(TEST, temperatures), 3)
    for method in prediction_sets.METHODS:
        limit = calibration.fit_limits(VALIDATION, 0.9, method)[2]
        sets = prediction_sets.sets(method, np.exp(TEST.log_probabilities[:, 2]), limit)
        assert row["sets"][method]["limit"] == found["limits"][method][2] == limit
        assert row["sets"][method]["size"] == sets.sum(axis=1).mean()
        assert row["sets"][method]["coverage"] == pytest.approx(0.9, abs=0.03)
