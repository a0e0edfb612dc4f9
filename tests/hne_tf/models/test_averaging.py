import itertools

import numpy as np
import pytest
from keras import ops
from scipy import special

from hne_tf.errors import InputError
from hne_tf.exported.interface import running_sum_width
from hne_tf.models import averaging

SIZES = (1, 2, 3, 5)


def random_logits(batch=6, leaves=5, classes=4, scale=3.0):
    return np.random.default_rng(0).normal(0, scale, (batch, leaves, classes)).astype(np.float32)


def answer_of_first(leaf_logits, size, average, temperature=1.0):
    """Probabilities of the ensemble of the first leaves, in float64."""
    plain = average.removeprefix("cached_")
    if plain != average:
        every = [answer_of_first(leaf_logits, n, plain, temperature) for n in range(1, size + 1)]
        # Of those that are as sure, the newest.
        surest = [
            max(range(size), key=lambda n: (-np.sort(every[n][row])[:-1].sum(), n))
            for row in range(len(leaf_logits))
        ]
        return np.stack([every[n][row] for row, n in enumerate(surest)])
    first = leaf_logits[:, :size].astype(np.float64)
    if average == "probabilities":
        return special.softmax(first / temperature, axis=-1).mean(axis=1)
    if average == "product":
        factors = np.maximum(first, 1e-3).prod(axis=1) ** (1 / temperature)
        return factors / factors.sum(axis=-1, keepdims=True)
    logits = {"logits": first.mean(axis=1), "last": first[:, -1], "sum": first.sum(axis=1)}
    return special.softmax(logits[average] / temperature, axis=-1)


def running_answer(leaf_logits, size, average):
    """Logits and probabilities from contributions added up leaf by leaf."""
    running_sum = averaging.start(averaging.contribution(leaf_logits[:, 0], average), average)
    for leaf in range(1, size):
        contribution = averaging.contribution(leaf_logits[:, leaf], average)
        running_sum = averaging.add(running_sum, contribution, leaf + 1, average)
    assert running_sum.shape[1] == running_sum_width(leaf_logits.shape[2], average)
    at_once = averaging.add_all(averaging.contribution(leaf_logits[:, :size], average), average)
    if averaging.uncached(average) != "last":
        np.testing.assert_allclose(running_sum, at_once, rtol=1e-5)
    return [ops.convert_to_numpy(x) for x in averaging.answer(running_sum, size, average)]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
@pytest.mark.parametrize("average", averaging.AVERAGES)
def test_ensembles_equal_numpy(average, temperature):
    leaf_logits = random_logits()
    got = averaging.ensemble_log_probabilities(leaf_logits, SIZES, average, temperature)
    expected = [answer_of_first(leaf_logits, size, average, temperature) for size in SIZES]
    np.testing.assert_allclose(got, np.log(np.stack(expected, axis=1)), rtol=1e-5, atol=1e-5)


def test_the_averages_differ_and_logits_is_the_default():
    leaf_logits = random_logits()
    logits, *others = (
        np.asarray(averaging.ensemble_log_probabilities(leaf_logits, (1, 5), average))
        for average in ("logits", "probabilities", "last", "sum", "product")
    )
    np.testing.assert_array_equal(averaging.ensemble_log_probabilities(leaf_logits, (1, 5)), logits)
    for one in others[:-1]:
        np.testing.assert_allclose(one[:, 0], logits[:, 0], atol=1e-6)
    for one, other in itertools.combinations((logits, *others), 2):
        assert np.abs(one[:, 1] - other[:, 1]).max() > 0.1


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        ("logits", [0, 1, 2]),
        ("probabilities", [0, 1, 2]),
        ("last", [2]),
        ("sum", [0, 1, 2]),
        ("cached_last", [0, 1, 2]),
    ],
)
def test_an_answer_is_made_of_the_first_leaves_or_the_last_of_them(average, expected):
    assert list(averaging.leaves(3, average)) == expected


@pytest.mark.parametrize("average", averaging.AVERAGES)
def test_contributions_are_logits_or_probabilities_or_logs_of_each_leaf(average):
    leaf_logits = random_logits()
    contributions = {
        "probabilities": special.softmax(leaf_logits, axis=-1),
        "product": np.log(np.maximum(leaf_logits, 1e-3)),
    }
    expected = contributions.get(average.removeprefix("cached_"), leaf_logits)
    np.testing.assert_allclose(averaging.contribution(leaf_logits, average), expected, atol=1e-6)


@pytest.mark.parametrize("average", averaging.AVERAGES)
def test_answers_from_running_sums_equal_ensembles_at_once(average):
    leaf_logits = random_logits()
    log_probabilities = averaging.ensemble_log_probabilities(leaf_logits, SIZES, average)
    for index, size in enumerate(SIZES):
        logits, probabilities = running_answer(leaf_logits, size, average)
        expected = np.asarray(log_probabilities)[:, index]
        np.testing.assert_allclose(np.log(probabilities), expected, rtol=1e-5, atol=1e-5)
        if average == "logits":
            np.testing.assert_allclose(logits, leaf_logits[:, :size].mean(axis=1), atol=1e-5)
        elif average == "last":
            np.testing.assert_array_equal(logits, leaf_logits[:, size - 1])
        elif average == "sum":
            np.testing.assert_allclose(logits, leaf_logits[:, :size].sum(axis=1), rtol=1e-5)
        elif average == "probabilities":
            np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("average", averaging.AVERAGES)
def test_extreme_logits_give_finite_logits_and_probabilities(average):
    leaf_logits = np.array([[[3e4, -3e4, 0.0], [3e4, 0.0, -3e4]]], np.float32)
    log_probabilities = np.asarray(
        averaging.ensemble_log_probabilities(leaf_logits, (1, 2), average)
    )
    assert np.isfinite(log_probabilities).all()
    # A product of numbers is not as sure as one of exponentials.
    atol = 1e-6 if "product" not in average else 1e-3
    np.testing.assert_allclose(log_probabilities[0, :, 0], 0.0, atol=atol)
    logits, probabilities = running_answer(leaf_logits, 2, average)
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(probabilities, [[1.0, 0.0, 0.0]], atol=atol)


def test_kept_answers_never_become_less_sure():
    leaf_logits = random_logits(batch=50)
    for average in averaging.AVERAGES:
        scores = averaging.ensemble_log_probabilities(leaf_logits, range(1, 6), average)
        surety = np.exp(scores).max(axis=-1)
        assert (np.diff(surety, axis=1) >= 0).all() == averaging.is_cached(average)


@pytest.mark.parametrize(
    "ask",
    [
        averaging.check_average,
        lambda average: averaging.leaves(1, average),
        lambda average: averaging.add(random_logits()[0], random_logits()[0], 2, average),
        lambda average: averaging.contribution(random_logits(), average),
        lambda average: averaging.answer(random_logits()[:, 0], 1, average),
        lambda average: averaging.ensemble_log_probabilities(random_logits(), (1,), average),
    ],
)
def test_unknown_average_is_named(ask):
    with pytest.raises(InputError, match=r"one of logits, .* product, .*got 'median'"):
        ask("median")
