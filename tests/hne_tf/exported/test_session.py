import collections
import math

import numpy as np
import pytest
from scipy import special

from hne_tf.errors import InputError
from hne_tf.exported.interface import StepSignature
from hne_tf.exported.session import AnytimeSession, StepTimes
from hne_tf.exported.uncertainty import stopping
from hne_tf.tree import Tree

TREE = Tree((1, 2, 2))
CLASSES = 3
IMAGES = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)


def node(block, index, x):
    return np.sin(1.3 * x + 2.0 * block + index + 1)


def leaf_logits(tree, images):
    """Leaf by leaf, with no step and no cache."""
    leaves = []
    for leaf in range(tree.leaves):
        x = images.reshape(len(images), 1).astype(float)
        for block, index in enumerate(tree.path(leaf)):
            x = node(block, index, x)
        leaves.append(4 * np.sin(x * np.arange(1, CLASSES + 1)))
    return np.stack(leaves, axis=1)


def ensemble(tree, images, size):
    return special.softmax(leaf_logits(tree, images)[:, :size].mean(axis=1), axis=-1)


class Clock:
    """Seconds, which pass only when somebody works."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class FakeRunner:
    """Networks of one number; counts what it computes for which image."""

    image_shape = (1, 1, 1)
    class_names = ("ant", "bee", "cow")
    average = "logits"

    def __init__(self, tree=TREE, step_ms=lambda size, batch_size: 10.0):
        self.tree = tree
        self.steps = [StepSignature.of(step) for step in tree.steps]
        self.clock = Clock()
        self.step_ms = step_ms
        self.calls = []
        self.computed = collections.Counter()

    def run(self, step, inputs):
        plan = self.tree.steps[step.size - 1]
        names = {step.input} | ({"running_sum"} if step.size > 1 else set())
        assert set(inputs) == names
        start = inputs[step.input]
        # A cache carries the image's number beside its activation.
        if step.branch_block == 0:
            numbers = start.reshape(-1, 1).astype(float)
            x = numbers
        else:
            numbers, x = start[:, :1], start[:, 1:]
        outputs = {}
        for block, index in enumerate(plan.nodes, start=plan.branch_block):
            x = node(block, index, x)
            self.computed.update((int(number), block, index) for number in numbers[:, 0])
            if block in plan.cached_blocks:
                outputs[f"cache_{block}"] = np.concatenate([numbers, x], axis=1)
        running_sum = 4 * np.sin(x * np.arange(1, CLASSES + 1)) + inputs.get("running_sum", 0)
        self.calls.append((step.size, len(numbers)))
        self.clock.now += self.step_ms(step.size, len(numbers)) / 1000
        probabilities = special.softmax(running_sum / step.size, axis=-1)
        return {**outputs, "running_sum": running_sum, "probabilities": probabilities}


def session_of(runner, images=IMAGES, times=None):
    return AnytimeSession(runner, images, times, clock=runner.clock)


def measured(runner):
    times = StepTimes()
    times.measure(runner, len(IMAGES), repeats=3, clock=runner.clock)
    runner.calls.clear()
    runner.computed.clear()
    return times


def assert_answers(runner, session, images=IMAGES):
    """Every image has the answer of the ensemble of its own size."""
    for row, size in enumerate(session.sizes):
        expected = ensemble(runner.tree, images[[row]], size)[0]
        np.testing.assert_allclose(session.probabilities[row], expected, atol=1e-6)


def assert_nothing_twice(runner):
    assert set(runner.computed.values()) <= {1}


@pytest.mark.parametrize("branching", [(1, 2, 2), (1, 2, 3), (2, 1, 2), (3,), (1, 1)])
def test_iterating_gives_every_ensemble_and_computes_each_node_once(branching):
    runner = FakeRunner(Tree(branching))
    sizes = []
    for size, probabilities in session_of(runner):
        np.testing.assert_allclose(probabilities, ensemble(runner.tree, IMAGES, size), atol=1e-6)
        sizes.append(size)
    assert sizes == list(range(1, runner.tree.leaves + 1))
    nodes = runner.tree.block_evaluations(runner.tree.leaves)
    assert len(runner.computed) == nodes * len(IMAGES)
    assert_nothing_twice(runner)


def test_caches_that_no_later_step_needs_are_dropped():
    runner = FakeRunner(Tree((1, 2, 2)))
    session = session_of(runner)
    held = [set(session._groups[0].known) for _ in session]
    always = {"probabilities", "running_sum"}
    assert held == [
        always | {"cache_0", "cache_1"},
        always | {"cache_0"},
        always | {"cache_1"},
        {"probabilities"},
    ]


def test_what_each_leaf_gives_is_kept():
    session = session_of(FakeRunner())
    for size, _ in session:
        expected = leaf_logits(TREE, IMAGES)[:, :size]
        np.testing.assert_allclose(session.leaf_outputs, expected, atol=1e-6)
    apart = session_of(FakeRunner())
    apart.run(confidence=[0.7, 1.0, 1.0])
    with pytest.raises(InputError, match=r"those of one size, got images at sizes 1, 4"):
        _ = apart.leaf_outputs


def test_before_the_first_step_the_answer_is_uniform():
    session = session_of(FakeRunner())
    assert session.sizes.tolist() == [0] * 5
    np.testing.assert_allclose(session.probabilities, np.full((5, 3), 1 / 3))


def test_a_run_without_limits_computes_all():
    runner = FakeRunner()
    answer = session_of(runner).run()
    assert answer.sizes.tolist() == [4] * 5
    np.testing.assert_allclose(answer.probabilities, ensemble(TREE, IMAGES, 4), atol=1e-6)
    assert answer.elapsed_ms == pytest.approx(40)


def test_answers_are_not_changed_by_going_on():
    runner = FakeRunner()
    session = session_of(runner)
    first = next(iter(session))[1]
    before = first.copy()
    session.run()
    np.testing.assert_array_equal(first, before)


# Deadlines.


@pytest.mark.parametrize(
    ("deadline_ms", "size"), [(1, 1), (10, 1), (19.9, 1), (20.1, 2), (35, 3), (40.1, 4), (99, 4)]
)
def test_no_step_is_started_that_cannot_finish(deadline_ms, size):
    runner = FakeRunner()
    session = session_of(runner, times=measured(runner))
    answer = session.run(deadline_ms=deadline_ms, grace=0)
    assert answer.sizes.tolist() == [size] * 5
    assert answer.elapsed_ms == pytest.approx(10 * size)
    assert_answers(runner, session)


@pytest.mark.parametrize(("deadline_ms", "size"), [(18.9, 1), (19.2, 2)])
def test_grace_is_a_share_of_the_deadline(deadline_ms, size):
    runner = FakeRunner()
    session = session_of(runner, times=measured(runner))
    assert session.run(deadline_ms=deadline_ms, grace=0.05).sizes.tolist() == [size] * 5


def test_each_step_has_its_own_time():
    runner = FakeRunner(step_ms=lambda size, batch_size: {1: 40, 2: 10, 3: 25, 4: 10}[size])
    times = measured(runner)
    assert session_of(runner, times=times).run(deadline_ms=51, grace=0).sizes[0] == 2
    assert session_of(runner, times=times).run(deadline_ms=74, grace=0).sizes[0] == 2
    assert session_of(runner, times=times).run(deadline_ms=76, grace=0).sizes[0] == 3


def test_a_later_run_has_its_own_deadline_and_goes_on():
    runner = FakeRunner()
    session = session_of(runner, times=measured(runner))
    assert session.run(deadline_ms=21, grace=0).sizes[0] == 2
    runner.clock.now += 1000
    answer = session.run(deadline_ms=11, grace=0)
    assert (answer.sizes[0], answer.elapsed_ms) == (3, pytest.approx(10))
    # There is an answer now, so that no step has to be taken.
    assert session.run(deadline_ms=1).sizes[0] == 3
    assert [size for size, _ in session] == [4]
    assert list(session) == []
    assert runner.calls == [(size, 5) for size in (1, 2, 3, 4)]
    assert_nothing_twice(runner)


def test_sessions_learn_from_each_other():
    runner = FakeRunner()
    times = measured(runner)
    runner.step_ms = lambda size, batch_size: 20.0
    for _ in range(40):
        session_of(runner, times=times).run()
    assert session_of(runner, times=times).run(deadline_ms=50, grace=0).sizes[0] == 2


def test_without_measurements_every_step_is_taken_for_as_long_as_the_longest():
    runner = FakeRunner(step_ms=lambda size, batch_size: 40.0 if size == 1 else 10.0)
    assert session_of(runner).run(deadline_ms=79, grace=0).sizes[0] == 1
    assert session_of(runner).run(deadline_ms=81, grace=0).sizes[0] == 2


def test_an_interrupted_step_leaves_the_answer_before_it():
    runner = FakeRunner()
    session = session_of(runner)
    steps = iter(session)
    next(steps)
    working, runner.run = runner.run, lambda step, inputs: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        session.run()
    assert session.sizes.tolist() == [1] * 5
    assert_answers(runner, session)
    runner.run = working
    assert session.run().sizes.tolist() == [4] * 5
    assert_answers(runner, session)
    assert_nothing_twice(runner)


# Confidence.


def sizes_by_hand(thresholds, images=IMAGES):
    """Where each image stops, from the ensembles alone."""
    sizes = []
    for row in range(len(images)):
        tops = [ensemble(TREE, images[[row]], size).max() for size in range(1, TREE.leaves)]
        sure = [top >= threshold for top, threshold in zip(tops, thresholds, strict=True)]
        sizes.append(sure.index(True) + 1 if any(sure) else TREE.leaves)
    return sizes


def tops(size):
    return ensemble(TREE, IMAGES, size).max(axis=1)


def test_each_image_stops_when_it_is_confident():
    confidence = float(np.median(tops(1)))
    expected = sizes_by_hand([confidence] * 3)
    assert len(set(expected)) > 1
    runner = FakeRunner()
    session = session_of(runner)
    assert session.run(confidence=confidence).sizes.tolist() == expected
    assert_answers(runner, session)
    for size, batch_size in runner.calls:
        assert batch_size == sum(stop >= size for stop in expected)
    assert_nothing_twice(runner)


def between(scores):
    """A threshold that some images reach; none if all are equally sure."""
    different = np.unique(np.round(scores, 6))
    middle = len(different) // 2
    return different[middle - 1 : middle + 1].mean() if middle else different[0] + 0.01


@pytest.mark.parametrize("average", ["logits", "last"])
@pytest.mark.parametrize("rule", stopping.RULES)
def test_each_image_stops_when_its_rule_is_sure(rule, average):
    runner = FakeRunner()
    runner.average = average
    outputs = leaf_logits(runner.tree, IMAGES)
    if average == "last":
        # Each sum is what the exit gives by itself.
        outputs = np.cumsum(outputs, axis=1)
    scores = [
        stopping.scores(rule, ensemble(runner.tree, IMAGES, size), outputs[:, :size])
        for size in (1, 2, 3)
    ]
    limits = [between(each) for each in scores]
    sizes = [
        next((size for size in (1, 2, 3) if scores[size - 1][row] >= limits[size - 1]), 4)
        for row in range(len(IMAGES))
    ]
    assert len(set(sizes)) > 1
    session = session_of(runner)
    assert session.run(confidence=limits, rule=rule).sizes.tolist() == sizes
    assert_answers(runner, session)
    assert_nothing_twice(runner)


def test_a_session_is_sure_when_all_its_images_are():
    limit = stopping.Limit("confidence", [0.6, 0.6, 0.6])
    session = session_of(FakeRunner())
    assert not session.is_sure(limit)
    for _, probabilities in session:
        sure = (probabilities.max(axis=1) >= 0.6).all()
        assert session.is_sure(limit) == (sure or session.sizes[0] == 4)


def test_an_unknown_rule_is_refused():
    with pytest.raises(InputError, match=r"stopping rule must be one of confidence, .* got 'luck'"):
        session_of(FakeRunner()).run(confidence=0.5, rule="luck")


def test_one_threshold_per_size():
    thresholds = [float(np.sort(tops(size))[-2]) for size in (1, 2, 3)]
    expected = sizes_by_hand(thresholds)
    assert len(set(expected)) > 2
    runner = FakeRunner()
    session = session_of(runner)
    assert session.run(confidence=thresholds).sizes.tolist() == expected
    assert_answers(runner, session)


def test_more_confidence_goes_on_where_each_image_stopped():
    runner = FakeRunner()
    session = session_of(runner)
    thresholds = [float(np.sort(tops(size))[-2]) for size in (1, 2, 3)]
    assert len(set(session.run(confidence=thresholds).sizes)) > 2
    before = session.sizes
    higher = session.run(confidence=0.9999).sizes
    assert (higher >= before).all()
    assert_answers(runner, session)
    assert session.run().sizes.tolist() == [4] * 5
    assert_answers(runner, session)
    assert_nothing_twice(runner)
    assert len(runner.computed) == 7 * len(IMAGES)


def test_groups_merge_where_they_meet():
    runner = FakeRunner()
    session = session_of(runner)
    confidence = float(np.median(tops(1)))
    stopped = int(np.sum(session.run(confidence=[confidence, 1e-9, 1e-9]).sizes == 1))
    assert 0 < stopped < 5
    runner.calls.clear()
    assert [size for size, _ in session] == [2, 3, 4]
    # Those behind catch up, then all go on as one.
    assert runner.calls == [(2, stopped), (3, 5), (4, 5)]
    assert_answers(runner, session)


def test_deadline_and_confidence_together():
    runner = FakeRunner()
    session = session_of(runner, times=measured(runner))
    confidence = float(np.median(tops(1)))
    sure = np.minimum(sizes_by_hand([confidence] * 3), 2)
    answer = session.run(deadline_ms=25, confidence=confidence, grace=0)
    assert answer.sizes.tolist() == sure.tolist()
    assert_answers(runner, session)


def test_where_a_large_group_does_not_fit_a_smaller_one_goes_on():
    runner = FakeRunner(step_ms=lambda size, batch_size: 10.0 * batch_size)
    times = StepTimes()
    for size in range(1, 5):
        for batch_size in range(1, 6):
            times.add(size, batch_size, 10.0 * batch_size)
    session = session_of(runner, times=times)
    # All but one stop after the first leaf.
    confidence = float(np.sort(tops(1))[1])
    session.run(confidence=[confidence, 1e-9, 1e-9])
    assert sorted(session.sizes) == [1, 1, 1, 1, 2]
    session.run(deadline_ms=15, grace=0)
    assert sorted(session.sizes) == [1, 1, 1, 1, 3]
    assert_answers(runner, session)


# Step times.


def test_measure_times_warm_walks():
    runner = FakeRunner()
    calls = collections.Counter()

    def step_ms(size, batch_size):
        calls[size] += 1
        # The first walks are cold.
        return 1000.0 if calls[size] <= 3 else 10.0 * size

    runner.step_ms = step_ms
    times = StepTimes()
    times.add(1, 1, 7.0)
    times.measure(runner, 2, repeats=4, clock=runner.clock)
    assert times.estimate_ms(1, 1) == 7.0
    assert [times.estimate_ms(size, 2) for size in (1, 2, 3, 4)] == pytest.approx([10, 20, 30, 40])
    assert runner.calls == [(size, 2) for size in (1, 2, 3, 4)] * 7


# Bad input.


@pytest.mark.parametrize("deadline_ms", [0, -1, math.nan, "5", True])
def test_bad_deadlines(deadline_ms):
    with pytest.raises(InputError, match=r"deadline_ms must be .* got "):
        session_of(FakeRunner()).run(deadline_ms=deadline_ms)


@pytest.mark.parametrize(
    "confidence", [0, -0.1, 1.1, math.nan, [0.5, 0.5, 0], [0.5] * 4, [], "high", [[0.5] * 3]]
)
def test_bad_confidence(confidence):
    with pytest.raises(InputError, match=r"confidence must .* got "):
        session_of(FakeRunner()).run(confidence=confidence)


@pytest.mark.parametrize("grace", [-0.1, math.nan, "little"])
def test_bad_grace(grace):
    with pytest.raises(InputError, match="grace must be 0 or more"):
        session_of(FakeRunner()).run(deadline_ms=1, grace=grace)


@pytest.mark.parametrize(
    "images",
    [IMAGES[0], IMAGES[:0], IMAGES.astype(np.float32), np.zeros((2, 2, 1, 1), np.uint8), 3, [[1]]],
    ids=["rank", "empty", "dtype", "shape", "number", "list"],
)
def test_bad_images(images):
    with pytest.raises(InputError, match=r"images must be uint8 of shape \[1 or more, 1, 1, 1\]"):
        session_of(FakeRunner(), images)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"batch_size": 1, "repeats": 0}])
def test_bad_measurements(settings):
    with pytest.raises(InputError, match="must be 1 or more, got 0"):
        StepTimes().measure(FakeRunner(), **settings)
