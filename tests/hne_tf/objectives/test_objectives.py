import itertools
import json
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from hne_tf.errors import InputError
from hne_tf.objectives import (
    CoDistillation,
    HierarchicalDistillation,
    Independent,
    Subtree,
    TeacherAssistants,
)
from hne_tf.tree import Tree

SIZES = (1, 2, 4)
LEAVES = 4
CLASSES = 3
AVERAGES = ("logits", "probabilities")
LABELS = np.array([0, 2, 1, 1, 2])
LEAF_LOGITS = np.random.default_rng(1).normal(0, 1.5, (5, LEAVES, CLASSES)).astype(np.float32)

DISTILLATION = [
    {"alpha": alpha, "temperature": temperature, "combine": combine, "average": average}
    for (alpha, temperature), combine, average in itertools.product(
        [(0.5, 2.0), (0.25, 1.0), (1.0, 4.0)], ("added", "traded"), AVERAGES
    )
]
LOSSES = [
    Independent(),
    *(Subtree(SIZES, average) for average in AVERAGES),
    *(CoDistillation(**settings) for settings in DISTILLATION),
    *(HierarchicalDistillation(SIZES, **settings) for settings in DISTILLATION),
    *(
        TeacherAssistants(SIZES, teachers=teachers, **settings)
        for settings in DISTILLATION[::3]
        for teachers in ("larger", "next")
    ),
]


def describe(loss):
    config = loss.get_config()
    keys = ("alpha", "temperature", "combine", "average", "teachers")
    return "-".join([loss.name, *(str(config[key]) for key in keys if key in config)])


every_loss = pytest.mark.parametrize("loss", LOSSES, ids=describe)
distilled = [loss for loss in LOSSES if "alpha" in loss.get_config()]


def ensemble(leaves, size, average, temperature):
    """Class probabilities of the first leaves of one example, `leaves` `[leaves, classes]`."""
    if average == "logits":
        return special.softmax(sum(leaves[:size]) / size / temperature)
    return sum(special.softmax(leaf / temperature) for leaf in leaves[:size]) / size


def soft_targets(leaves, config):
    """What each ensemble teaches, by its size."""
    return {
        size: ensemble(leaves, size, config["average"], config["temperature"]) for size in SIZES
    }


def cross_entropy(target, probabilities):
    return -sum(t * np.log(p) for t, p in zip(target, probabilities, strict=True))


def reference(loss, label, leaves, targets=None):
    """The loss of one example as the papers write it; `targets` replace the soft targets."""
    config = loss.get_config()
    onehot = np.eye(CLASSES)[label]
    if isinstance(loss, Subtree):
        return sum(
            cross_entropy(onehot, ensemble(leaves, size, config["average"], 1.0))
            for size in config["sizes"]
        )
    independent = sum(cross_entropy(onehot, special.softmax(leaf)) for leaf in leaves)
    if isinstance(loss, Independent):
        return independent
    temperature, alpha = config["temperature"], config["alpha"]
    if targets is None:
        targets = soft_targets(leaves, config)
    if isinstance(loss, CoDistillation):
        students = [special.softmax(leaf / temperature) for leaf in leaves]
    else:
        students = [
            ensemble(leaves, size, config["average"], temperature) for size in config["sizes"][:-1]
        ]
    distillation = 0.0
    for position, student in enumerate(students):
        teachers = [LEAVES]
        if isinstance(loss, TeacherAssistants):
            teachers = SIZES[position + 1 :][: 1 if config["teachers"] == "next" else None]
        lessons = [cross_entropy(targets[size], student) for size in teachers]
        distillation += sum(lessons) / len(lessons)
    weight = {"added": 1.0, "traded": 1.0 - alpha}[config["combine"]]
    return weight * independent + alpha * temperature**2 * distillation


def references(loss, labels=LABELS, leaf_logits=LEAF_LOGITS):
    leaf_logits = leaf_logits.astype(np.float64)
    return [reference(loss, *pair) for pair in zip(labels, leaf_logits, strict=True)]


def numerical_gradient(function, leaves, step=1e-5):
    gradient = np.zeros_like(leaves)
    for index in np.ndindex(leaves.shape):
        change = np.zeros_like(leaves)
        change[index] = step
        gradient[index] = (function(leaves + change) - function(leaves - change)) / (2 * step)
    return gradient


def gradient_of(loss):
    leaf_logits = tf.constant(LEAF_LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(leaf_logits)
        values = loss.call(LABELS, leaf_logits)
    return tape.gradient(values, leaf_logits).numpy()


@every_loss
def test_one_value_per_example_equals_plain_loops(loss):
    values = loss.call(LABELS, LEAF_LOGITS)
    assert values.shape == LABELS.shape
    np.testing.assert_allclose(values, references(loss), rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "cross_entropies"),
    [
        (Independent(), 4),
        (Subtree(SIZES), 3),
        (CoDistillation(alpha=0.5, temperature=2.0), 4 + 0.5 * 2**2 * 4),
        (CoDistillation(alpha=0.5, temperature=2.0, combine="traded"), 0.5 * 4 + 2 * 4),
        (HierarchicalDistillation(SIZES, alpha=0.25, temperature=3.0), 4 + 0.25 * 9 * 2),
        (TeacherAssistants(SIZES, alpha=0.25, temperature=3.0), 4 + 0.25 * 9 * 2),
        (
            HierarchicalDistillation(SIZES, alpha=0.25, temperature=3.0, combine="traded"),
            0.75 * 4 + 0.25 * 9 * 2,
        ),
    ],
    ids=lambda value: describe(value) if isinstance(value, keras.losses.Loss) else None,
)
def test_losses_are_sums_over_leaves_and_sizes(loss, cross_entropies):
    """Leaves that know nothing: every cross-entropy is the log of the number of classes."""
    values = loss.call(np.array([1]), np.zeros((1, LEAVES, CLASSES), np.float32))
    np.testing.assert_allclose(values, [cross_entropies * np.log(CLASSES)], rtol=1e-6)


@every_loss
def test_no_gradient_flows_through_the_soft_target(loss):
    """The gradient is that of the formula with the target a constant."""
    config = loss.get_config()
    expected, unstopped = [], []
    for label, leaves in zip(LABELS, LEAF_LOGITS.astype(np.float64), strict=True):
        targets = soft_targets(leaves, config) if "alpha" in config else None
        expected.append(
            numerical_gradient(lambda x, k=label, t=targets: reference(loss, k, x, t), leaves)
        )
        unstopped.append(numerical_gradient(lambda x, k=label: reference(loss, k, x), leaves))
    np.testing.assert_allclose(gradient_of(loss), expected, rtol=1e-4, atol=1e-5)
    if "alpha" in config:
        assert np.abs(np.subtract(unstopped, expected)).max() > 0.01


def test_gradient_of_independent_leaves_is_softmax_minus_label():
    expected = special.softmax(LEAF_LOGITS, axis=-1) - np.eye(CLASSES)[LABELS][:, None]
    np.testing.assert_allclose(gradient_of(Independent()), expected, atol=1e-6)


def test_gradient_of_codistillation_pulls_each_leaf_to_the_ensemble():
    alpha, temperature = 0.3, 2.0
    teacher = special.softmax(LEAF_LOGITS.mean(axis=1, keepdims=True) / temperature, axis=-1)
    students = special.softmax(LEAF_LOGITS / temperature, axis=-1)
    labels = special.softmax(LEAF_LOGITS, axis=-1) - np.eye(CLASSES)[LABELS][:, None]
    expected = (1 - alpha) * labels + alpha * temperature * (students - teacher)
    loss = CoDistillation(alpha=alpha, temperature=temperature, combine="traded")
    np.testing.assert_allclose(gradient_of(loss), expected, atol=1e-5)


def test_gradient_of_hierarchical_distillation_pulls_only_nested_ensembles():
    alpha, temperature = 0.3, 2.0
    teacher = special.softmax(LEAF_LOGITS.mean(axis=1) / temperature, axis=-1)
    expected = special.softmax(LEAF_LOGITS, axis=-1) - np.eye(CLASSES)[LABELS][:, None]
    for size in SIZES[:-1]:
        student = special.softmax(LEAF_LOGITS[:, :size].mean(axis=1) / temperature, axis=-1)
        expected[:, :size] += (alpha * temperature / size * (student - teacher))[:, None]
    loss = HierarchicalDistillation(SIZES, alpha=alpha, temperature=temperature)
    np.testing.assert_allclose(gradient_of(loss), expected, atol=1e-5)


def test_unset_distillation_is_added_with_alpha_half_and_temperature_two():
    settings = {"alpha": 0.5, "temperature": 2.0, "combine": "added", "average": "logits"}
    for default, spelled_out in (
        (CoDistillation(), CoDistillation(**settings)),
        (HierarchicalDistillation(SIZES), HierarchicalDistillation(SIZES, **settings)),
        (TeacherAssistants(SIZES), TeacherAssistants(SIZES, teachers="larger", **settings)),
    ):
        np.testing.assert_array_equal(
            default.call(LABELS, LEAF_LOGITS), spelled_out.call(LABELS, LEAF_LOGITS)
        )


@pytest.mark.parametrize("combine", ["added", "traded"])
def test_ramp_is_silent_at_first_then_linear_then_constant(combine):
    ramped = HierarchicalDistillation(SIZES, alpha=0.8, ramp_steps=10, combine=combine)
    ramped.iterations = keras.Variable(0, dtype="int64")
    # Compiled once, as in training: the counter must not be baked in.
    compiled = tf.function(ramped.call)
    for step, alpha in [(0, 0.0), (1, 0.08), (5, 0.4), (10, 0.8), (11, 0.8), (1000, 0.8)]:
        ramped.iterations.assign(step)
        constant = HierarchicalDistillation(SIZES, alpha=alpha, combine=combine)
        np.testing.assert_allclose(
            compiled(tf.constant(LABELS), tf.constant(LEAF_LOGITS)),
            references(constant),
            rtol=1e-5,
        )


def test_a_ramp_whose_steps_nobody_counts_is_refused():
    with pytest.raises(InputError, match=r"ramp_steps=10 must be counted: compile an ensemble"):
        CoDistillation(ramp_steps=10).call(LABELS, LEAF_LOGITS)


@pytest.mark.parametrize("kind", [Subtree, HierarchicalDistillation, TeacherAssistants])
@pytest.mark.parametrize("leaves", [2, 3, 4])
def test_sizes_are_those_of_a_tree_by_default(leaves, kind):
    sizes, logits = Tree((leaves,)).sizes, LEAF_LOGITS[:, :leaves]
    np.testing.assert_array_equal(kind().call(LABELS, logits), kind(sizes).call(LABELS, logits))


@pytest.mark.parametrize("kind", ["column", "one-hot"])
def test_labels_are_numbers_or_rows(kind):
    rows = {"column": LABELS[:, None], "one-hot": np.eye(CLASSES, dtype=np.float32)[LABELS]}[kind]
    for loss in (LOSSES[0], LOSSES[1], distilled[0], distilled[-1]):
        np.testing.assert_allclose(
            loss.call(rows, LEAF_LOGITS), loss.call(LABELS, LEAF_LOGITS), rtol=1e-6
        )


def test_soft_labels_are_taken_as_they_are():
    soft = np.full((5, CLASSES), 1 / CLASSES, np.float32)
    expected = -special.log_softmax(LEAF_LOGITS, axis=-1).sum(axis=1).mean(axis=-1)
    np.testing.assert_allclose(Independent().call(soft, LEAF_LOGITS), expected, rtol=1e-5)


@pytest.mark.parametrize("labels", [LABELS, np.eye(CLASSES, dtype=np.float32)[LABELS]])
def test_labels_are_smoothed(labels):
    smoothed = 0.7 * np.eye(CLASSES)[LABELS] + 0.3 / CLASSES
    for kind in (
        Independent,
        Subtree,
        CoDistillation,
        HierarchicalDistillation,
        TeacherAssistants,
    ):
        expected = kind().call(smoothed.astype(np.float32), LEAF_LOGITS)
        loss = kind.from_config(kind(label_smoothing=0.3).get_config())
        np.testing.assert_allclose(loss.call(labels, LEAF_LOGITS), expected, rtol=1e-5)
        assert np.abs(loss.call(labels, LEAF_LOGITS) - kind().call(labels, LEAF_LOGITS)).max() > 0.1


@pytest.mark.parametrize(
    "kind", [Independent, CoDistillation, HierarchicalDistillation, TeacherAssistants]
)
def test_leaves_learn_labels_from_rows_of_their_view(kind):
    loss = kind.from_config(kind(views=2).get_config())
    log_probabilities = np.log(special.softmax(LEAF_LOGITS, axis=-1))
    examples, leaves, _ = LEAF_LOGITS.shape
    change = np.zeros(examples)
    for row, leaf in itertools.product(range(examples), range(leaves)):
        entropy = -log_probabilities[row, leaf, LABELS[row]]
        change[row] += entropy if row % 2 == leaf % 2 else -entropy
    # What distils takes all rows, as without views.
    expected = keras.ops.convert_to_numpy(kind().call(LABELS, LEAF_LOGITS)) + change
    np.testing.assert_allclose(loss.call(LABELS, LEAF_LOGITS), expected, rtol=1e-5)
    with pytest.raises(InputError, match="views must be 1 or more, got 0"):
        kind(views=0)


def test_labels_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"rows \[batch, 3\], got shape \(5, 2\)"):
        Independent().call(np.zeros((5, 2)), LEAF_LOGITS)


def test_a_single_network_has_nobody_to_teach():
    single = LEAF_LOGITS[:, :1]
    labels = np.array(references(Independent(), leaf_logits=single))
    for combine, weight in (("added", 1.0), ("traded", 0.7)):
        loss = HierarchicalDistillation((1,), alpha=0.3, combine=combine)
        values = loss.call(LABELS, single)
        assert values.shape == LABELS.shape
        np.testing.assert_allclose(values, weight * labels, rtol=1e-5)
    np.testing.assert_allclose(Subtree((1,)).call(LABELS, single), labels, rtol=1e-5)


class Offset(keras.layers.Layer):
    """Adds a trained `[leaves, classes]` to its input."""

    def build(self, input_shape):
        self.offset = self.add_weight(shape=input_shape[1:], initializer="zeros")

    def call(self, x):
        return x + self.offset


ONE_HOT = np.eye(CLASSES)[LABELS]


@pytest.mark.parametrize(
    "labels", [LABELS, LABELS[:, None], ONE_HOT], ids=["flat", "column", "one-hot"]
)
@pytest.mark.parametrize("loss", [LOSSES[0], LOSSES[1], distilled[0], distilled[-1]], ids=describe)
def test_fit_takes_the_mean_over_the_batch(loss, labels):
    model = keras.Sequential([keras.Input((LEAVES, CLASSES)), Offset()])
    model.compile(keras.optimizers.SGD(0.1), loss)
    history = model.fit(LEAF_LOGITS, labels, batch_size=len(LABELS), epochs=1, verbose=0).history
    np.testing.assert_allclose(history["loss"], [np.mean(references(loss))], rtol=1e-5)
    expected = -0.1 * gradient_of(loss).mean(axis=0)
    np.testing.assert_allclose(model.layers[0].offset, expected, rtol=1e-4, atol=1e-6)


def test_fit_weighs_examples():
    model = keras.Sequential([keras.Input((LEAVES, CLASSES)), Offset()])
    loss, weights = distilled[-1], np.array([0.0, 1.0, 2.0, 0.5, 3.0])
    model.compile(keras.optimizers.SGD(0.1), loss)
    history = model.fit(
        LEAF_LOGITS, LABELS, sample_weight=weights, batch_size=5, epochs=1, verbose=0
    ).history
    np.testing.assert_allclose(history["loss"], [np.mean(weights * references(loss))], rtol=1e-5)


@every_loss
def test_losses_survive_keras_serialisation(loss):
    saved = json.dumps(keras.saving.serialize_keras_object(loss))
    restored = keras.saving.deserialize_keras_object(json.loads(saved))
    assert type(restored) is type(loss)
    np.testing.assert_array_equal(
        restored.call(LABELS, LEAF_LOGITS), loss.call(LABELS, LEAF_LOGITS)
    )


def test_alpha_one_may_be_traded_and_any_may_be_added():
    CoDistillation(alpha=1.0, combine="traded")
    CoDistillation(alpha=3.0, combine="added")


@pytest.mark.parametrize(
    "build",
    [
        CoDistillation,
        *(partial(kind, SIZES) for kind in (HierarchicalDistillation, TeacherAssistants)),
    ],
)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -0.1}, "alpha must be 0 or more, got -0.1"),
        ({"alpha": 1.5, "combine": "traded"}, "at most 1 when it is traded, got 1.5"),
        ({"ramp_steps": -5}, "ramp_steps must be 0 or more, got -5"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ({"combine": "mixed"}, "one of added, traded, got 'mixed'"),
        ({"average": "median"}, "one of logits, probabilities, last, .*got 'median'"),
    ],
)
def test_bad_settings_of_distillation(build, settings, message):
    with pytest.raises(InputError, match=message):
        build(**settings)


@pytest.mark.parametrize("sizes", [None, (1,)])
def test_a_single_network_has_no_assistants(sizes):
    message = r"need two ensemble sizes or more, as a tree of two leaves has, got \(1,\)"
    with pytest.raises(InputError, match=message):
        TeacherAssistants(sizes).call(LABELS, LEAF_LOGITS[:, :1])


def test_bad_teachers():
    with pytest.raises(InputError, match="teachers must be one of larger, next, got 'all'"):
        TeacherAssistants(SIZES, teachers="all")


def test_assistants_of_two_sizes_are_hierarchical_distillation():
    for teachers in ("larger", "next"):
        np.testing.assert_allclose(
            TeacherAssistants((1, 4), teachers=teachers).call(LABELS, LEAF_LOGITS),
            HierarchicalDistillation((1, 4)).call(LABELS, LEAF_LOGITS),
            rtol=1e-6,
        )


def test_bad_average_of_subtrees():
    with pytest.raises(InputError, match=r"one of logits, probabilities, last, .*got 'median'"):
        Subtree(SIZES, "median")


def test_hierarchical_distillation_from_the_last_is_exit_distillation():
    """Phuong and Lampert, ICCV 2019: every exit but the last learns from the last one.

    `(1 - a) sum_k CE(f_k, y) + a T^2 sum_{k<K} CE(f_k / T, softmax(f_K / T))`, theirs
    but for a constant factor.
    """
    alpha, temperature = 0.25, 3.0
    loss = HierarchicalDistillation(
        range(1, LEAVES + 1),
        alpha=alpha,
        temperature=temperature,
        combine="traded",
        average="last",
    )
    expected = []
    for label, (*early, last) in zip(LABELS, LEAF_LOGITS, strict=True):
        labels = -sum(special.log_softmax(logits)[label] for logits in (*early, last))
        target = special.softmax(last / temperature)
        distilled = -sum(target @ special.log_softmax(logits / temperature) for logits in early)
        expected.append((1 - alpha) * labels + alpha * temperature**2 * distilled)
    np.testing.assert_allclose(loss.call(LABELS, LEAF_LOGITS), expected, rtol=1e-5)
    with tf.GradientTape() as tape:
        logits = tf.constant(LEAF_LOGITS)
        tape.watch(logits)
        value = tf.reduce_sum(loss.call(LABELS, logits))
    # The teacher learns from the labels alone.
    softmax = special.softmax(LEAF_LOGITS[:, -1], axis=-1)
    from_labels = (1 - alpha) * (softmax - np.eye(CLASSES)[LABELS])
    np.testing.assert_allclose(tape.gradient(value, logits)[:, -1], from_labels, atol=1e-5)
