import itertools

import numpy as np
import pytest

from hne_tf.errors import InputError
from hne_tf.evaluation import early_stopping
from hne_tf.evaluation.early_stopping import Answers
from hne_tf.exported.interface import StepSignature
from hne_tf.exported.measurements import EarlyStopping
from hne_tf.exported.session import AnytimeSession

COSTS = [100, 130, 250, 300]


@pytest.fixture(scope="module")
def random_answers():
    """Makes answers of four sizes; a confident one is right more often than not."""

    def make(examples, seed):
        random = np.random.default_rng(seed)
        easiness = random.normal(size=(examples, 1))
        scores = easiness + random.normal(scale=0.5, size=(examples, 4)) + np.arange(4) / 4
        confidences = 1 / (1 + np.exp(-scores))
        return answers_of(confidences, random.uniform(size=(examples, 4)) < confidences)

    return make


def answers_of(confidences, correct):
    return Answers({"confidence": confidences}, correct)


def stop_by_loop(confidences, thresholds):
    sizes = []
    for row in confidences:
        size = 1
        while size < len(row) and row[size - 1] < thresholds[size - 1]:
            size += 1
        sizes.append(size)
    return sizes


def mean_cost(confidences, thresholds):
    return np.mean([COSTS[size - 1] for size in stop_by_loop(confidences, thresholds)])


def test_each_image_stops_as_in_a_loop(random_answers):
    confidences = random_answers(200, seed=1).scores["confidence"]
    for thresholds in ([0.5, 0.6, 0.7], [0.9, 0.1, 1.0], [1e-6] * 3, [1.0] * 3):
        sizes = early_stopping.apply(confidences, thresholds)
        assert sizes.tolist() == stop_by_loop(confidences, thresholds)


def test_a_confidence_of_just_the_threshold_stops():
    confidences = np.array([[0.5, 0.7, 0.9], [0.4, 0.7, 0.9], [0.4, 0.6, 0.9]])
    assert early_stopping.apply(confidences, [0.5, 0.7]).tolist() == [1, 2, 3]


@pytest.mark.parametrize("examples", [1, 7, 500])
def test_the_mean_cost_meets_the_target_and_never_exceeds_it(random_answers, examples):
    confidences = random_answers(examples, seed=2).scores["confidence"]
    # The cost by which one image that goes on may miss the target.
    widest = max(b - a for a, b in itertools.pairwise(COSTS)) / examples
    for target in np.linspace(COSTS[0], COSTS[-1], 23):
        thresholds = early_stopping.fit(confidences, COSTS, target)
        assert len(thresholds) == 3
        assert all(0 < threshold <= 1 for threshold in thresholds)
        cost = mean_cost(confidences, thresholds)
        # A step of the ratio can move an image past several sizes at once.
        assert target - 3 * widest <= cost <= target


def test_the_shares_that_stop_are_a_geometric_series(random_answers):
    confidences = random_answers(20_000, seed=3).scores["confidence"]
    thresholds = early_stopping.fit(confidences, COSTS, 180)
    counts = np.bincount(stop_by_loop(confidences, thresholds), minlength=5)[1:]
    ratios = counts[1:] / counts[:-1]
    np.testing.assert_allclose(ratios, ratios[0], rtol=0.01)
    # The ratio that has this mean cost, found on a fine grid.
    grid = np.linspace(0.1, 3, 2901)
    shares = grid[:, None] ** np.arange(4)
    means = (shares / shares.sum(axis=1, keepdims=True)) @ COSTS
    assert ratios[0] == pytest.approx(grid[np.argmin(np.abs(means - 180))], rel=0.01)


def test_the_most_confident_of_those_still_in_stop(random_answers):
    confidences = random_answers(1000, seed=4).scores["confidence"]
    thresholds = early_stopping.fit(confidences, COSTS, 200)
    sizes = np.array(stop_by_loop(confidences, thresholds))
    for size in (1, 2, 3):
        here, later = confidences[sizes == size], confidences[sizes > size]
        assert here[:, size - 1].min() >= later[:, size - 1].max()


def test_the_ends_of_the_targets_are_one_leaf_and_all(random_answers):
    confidences = random_answers(300, seed=5).scores["confidence"]
    low = early_stopping.fit(confidences, COSTS, 100)
    # Also for images that are less sure than any seen.
    assert early_stopping.apply(np.full([5, 4], 0.001), low).tolist() == [1] * 5
    high = early_stopping.fit(confidences, COSTS, 300)
    assert stop_by_loop(confidences, high) == [4] * 300


def test_equal_confidences_stop_together_within_the_target():
    confidences = np.round(np.random.default_rng(6).uniform(0.1, 1, size=[400, 4]), 1)
    confidences[:100] = 1.0
    for target in np.linspace(100, 300, 41):
        thresholds = early_stopping.fit(confidences, COSTS, target)
        assert mean_cost(confidences, thresholds) <= target


def test_a_single_network_has_no_thresholds():
    assert early_stopping.fit(np.ones([3, 1]), [7], 7) == []
    assert early_stopping.apply(np.ones([3, 1]), []).tolist() == [1, 1, 1]
    assert early_stopping.default_targets([7], (1,)) == []


def test_a_curve_is_fitted_on_one_split_and_judged_on_another(random_answers):
    validation, test = random_answers(300, seed=7), random_answers(250, seed=8)
    rows = early_stopping.curve(validation, test, COSTS, [120, 220])
    assert [row["target_multiply_adds"] for row in rows] == [120, 220]
    for row in rows:
        thresholds = early_stopping.fit(
            validation.scores["confidence"], COSTS, row["target_multiply_adds"]
        )
        assert row["thresholds"] == thresholds
        sizes = stop_by_loop(test.scores["confidence"], thresholds)
        assert row["mean_size"] == pytest.approx(np.mean(sizes))
        assert row["multiply_adds"] == round(mean_cost(test.scores["confidence"], thresholds))
        hits = [test.correct[image, size - 1] for image, size in enumerate(sizes)]
        assert row["accuracy"] == pytest.approx(np.mean(hits))


def test_the_anytime_accuracy_is_interpolated_to_the_same_cost():
    confidences = np.tile([[0.9, 0.9, 0.9, 0.9], [0.1, 0.9, 0.9, 0.9]], [50, 1])
    # Accuracies of 0, 50, 50 and 100 percent.
    correct = np.tile([[False, True, True, True], [False, False, False, True]], [50, 1])
    answers = answers_of(confidences, correct)
    (row,) = early_stopping.curve(answers, answers, [100, 200, 300, 400], [150])
    assert row["multiply_adds"] == 150
    assert row["anytime_accuracy"] == pytest.approx(0.25)


def test_confidence_that_tells_right_from_wrong_beats_one_size_for_all():
    random = np.random.default_rng(9)
    # Image i is answered rightly from some size on, and its confidence says so.
    first_right = random.integers(1, 5, size=1000)
    correct = np.arange(1, 5) >= first_right[:, None]
    confidences = np.where(correct, 0.9, 0.2) + random.uniform(0, 0.1, size=[1000, 4])
    validation = answers_of(confidences[:500], correct[:500])
    test = answers_of(confidences[500:], correct[500:])
    rows = early_stopping.curve(validation, test, COSTS, [120, 150, 190, 250])
    for row in rows[1:]:
        assert row["accuracy"] > row["anytime_accuracy"] + 0.05
    # All are right at the mean of the costs that they need, which is 195.
    assert rows[-1]["accuracy"] > 0.95


def test_default_targets_are_the_costs_of_sizes_and_points_between():
    targets = early_stopping.default_targets([100, 110, 130, 200], (1, 2, 4))
    # 110 is the cost of two leaves; the others divide 100 to 200 into eight parts.
    assert targets == [100, 110, 112, 125, 137, 150, 162, 175, 187]


@pytest.mark.parametrize("target", [99.9, 300.5, float("nan"), float("inf")])
def test_a_target_out_of_reach_is_refused(random_answers, target):
    confidences = random_answers(10, seed=10).scores["confidence"]
    with pytest.raises(InputError, match=r"from 100 \(as soon .*\) to 300 \(all 4 leaves\), got"):
        early_stopping.fit(confidences, COSTS, target)


@pytest.mark.parametrize("costs", [[100, 130, 250], [100, 90, 250, 300], [0, 1, 2, 3]])
def test_costs_that_do_not_belong_are_refused(random_answers, costs):
    with pytest.raises(InputError, match="costs"):
        early_stopping.fit(random_answers(10, seed=11).scores["confidence"], costs, 120)


def test_a_split_without_examples_is_refused():
    with pytest.raises(InputError, match=r"\[0, 4\]"):
        early_stopping.fit(np.ones([0, 4]), COSTS, 120)


def test_a_manifest_reads_what_was_calibrated(random_answers):
    validation, test = random_answers(300, seed=12), random_answers(100, seed=13)
    calibrated = early_stopping.calibrated(validation, test, COSTS, (1, 2, 4))
    block = EarlyStopping.from_json(calibrated)
    assert (block.split, block.examples) == ("validation", 300)
    targets = [point.target_multiply_adds for point in block.curve]
    assert targets == early_stopping.default_targets(COSTS, (1, 2, 4))
    assert block.thresholds(targets[-1]) == calibrated["curve"][-1]["thresholds"]


def test_targets_that_a_rule_cannot_meet_are_left_out():
    """The first size is never sure, so that no image can stop there."""
    random = np.random.default_rng(12)
    scores = random.uniform(0.1, 1, size=[300, 4])
    scores[:, 0] = 0.0
    answers = Answers({"significance": scores}, np.ones([300, 4], bool))
    assert early_stopping.least_cost(scores, COSTS) == COSTS[1]
    rows = early_stopping.curve(answers, answers, COSTS, [100, 129, 130, 200], "significance")
    assert [row["target_multiply_adds"] for row in rows] == [130, 200]
    assert rows[0]["mean_size"] == 2
    message = r"must be from 130 \(as soon as possible\) to 300 \(all 4 leaves\), got 129"
    with pytest.raises(InputError, match=message):
        early_stopping.fit(scores, COSTS, 129)


class _KnownAnswers:
    """A runner whose step n gives each image, which holds its index, a known confidence."""

    image_shape = (1, 1, 1)
    class_names = ("a", "b")
    average = "logits"

    def __init__(self, confidences):
        self._confidences = confidences
        self.steps = [
            StepSignature(f"step_{n}", n, 0, "images", "images", ())
            for n in range(1, confidences.shape[1] + 1)
        ]

    def run(self, step, inputs):
        top = self._confidences[inputs["images"][:, 0, 0, 0], step.size - 1]
        return {
            "running_sum": np.zeros([len(top), 2], np.float32),
            "probabilities": np.stack([top, 1 - top], axis=1),
        }


def test_a_session_stops_each_image_where_the_fit_did(random_answers):
    # Two classes: the highest probability is at least a half.
    confidences = np.float32(0.5 + random_answers(200, seed=14).scores["confidence"] / 2)
    images = np.arange(200, dtype=np.uint8).reshape(200, 1, 1, 1)
    for target in (100, 130, 200, 290, 300):
        thresholds = early_stopping.fit(confidences, COSTS, target)
        sizes = AnytimeSession(_KnownAnswers(confidences), images).run(confidence=thresholds).sizes
        assert sizes.tolist() == stop_by_loop(confidences, thresholds)
