"""Leaves that learn from networks outside their tree."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

import hne_tf
from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.models.architectures import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.teachers import Teachers
from hne_tf.objectives import Independent, OutsideTeachers
from hne_tf.training import trained
from hne_tf.training.loop import train
from hne_tf.training.workdir import Workdir
from hne_tf.tree import Tree

CLASSES, LEAVES = 3, 2
LABELS = np.array([0, 2, 1, 1])
RNG = np.random.default_rng(1)
LEAF_LOGITS = RNG.normal(0, 1.5, (4, LEAVES, CLASSES)).astype(np.float32)
TAUGHT = RNG.normal(0, 1.5, (4, LEAVES, CLASSES)).astype(np.float32)
SPEC = ImageSpec((8, 8, 1), ("a", "b", "c"), (100.0,), (50.0,))
IMAGES = RNG.integers(0, 256, (4, *SPEC.shape), np.uint8)


def network(classes=CLASSES, size=8, activation=None):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((size, size, 1))
    x = keras.layers.Dense(classes, activation=activation)(keras.layers.Flatten()(x))
    return keras.Model(inputs, x)


def tree(average="logits"):
    keras.utils.set_random_seed(3)
    resnet = ResNet("basic", widths=(4, 4), units=(1, 1), strides=(1, 2))
    return TreeEnsemble(resnet, Tree((1, LEAVES)), SPEC, average=average)


@pytest.mark.parametrize("combine", ["added", "traded"])
@pytest.mark.parametrize("learns", ["mean", "own"])
def test_values_are_those_of_a_plain_loop(learns, combine):
    loss = OutsideTeachers(learns=learns, combine=combine, alpha=0.3, temperature=3.0)
    expected = np.zeros(4)
    for row, label in enumerate(LABELS):
        for leaf in range(LEAVES):
            logits = LEAF_LOGITS[row, leaf].astype(np.float64)
            taught = TAUGHT[row].mean(axis=0) if learns == "mean" else TAUGHT[row, leaf]
            soft = special.softmax(taught / 3)
            learnt = -special.log_softmax(logits)[label]
            distilled = -(soft * special.log_softmax(logits / 3)).sum()
            expected[row] += (1 if combine == "added" else 0.7) * learnt + 0.3 * 9 * distilled
    answered = {"leaf_logits": LEAF_LOGITS, "teacher_logits": TAUGHT}
    np.testing.assert_allclose(loss.call(LABELS, answered), expected, rtol=1e-5)


def test_teachers_are_networks_of_pixels_and_of_normalised_images():
    plain, softmax, ensemble = network(), network(activation="softmax"), tree("probabilities")
    logits = np.asarray(plain((IMAGES - 100.0) / 50.0))
    given = Teachers([plain, softmax], (100.0,), (50.0,))(IMAGES)
    np.testing.assert_allclose(given[:, 0], logits, atol=1e-5)
    np.testing.assert_allclose(given[:, 1], special.log_softmax(logits, axis=-1), atol=1e-4)
    (leaves,) = np.asarray(Teachers([ensemble])(IMAGES)).swapaxes(0, 1)
    answers = special.softmax(np.asarray(ensemble(IMAGES)), axis=-1).mean(axis=1)
    np.testing.assert_allclose(np.exp(leaves), answers, atol=1e-5)


@pytest.mark.slow
def test_fit_learns_from_a_teacher_and_leaves_it_as_it_is():
    model, teacher = tree(), network()
    before = [value.copy() for value in teacher.get_weights()]
    labels = RNG.integers(0, CLASSES, 64)
    images = RNG.integers(0, 256, (64, *SPEC.shape), np.uint8)
    # Labels count for nothing: what is learnt is the teacher's.
    loss = OutsideTeachers([teacher], 1.0, 1.0, "traded", mean=SPEC.mean, std=SPEC.std)
    model.compile(keras.optimizers.Adam(0.01), loss=loss)
    history = model.fit(images, labels, batch_size=16, epochs=30, verbose=0).history["loss"]
    assert history[-1] < 0.8 * history[0]
    taught = np.asarray(teacher((images - 100.0) / 50.0)).argmax(axis=1)
    assert (model.probabilities(images).argmax(axis=1) == taught).mean() > 0.7
    for value, other in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, other)


def test_no_gradient_reaches_teachers():
    teacher = network()
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(Teachers([teacher])(IMAGES))
    assert tape.gradient(total, teacher.trainable_variables) == [None, None]


def test_a_saved_model_has_no_teachers(tmp_path):
    model = tree()
    model.compile("sgd", loss=OutsideTeachers([network()], learns="mean", mean=(1.0,), std=(2.0,)))
    model.fit(IMAGES, LABELS, verbose=0)
    model.save(tmp_path / "taught.keras")
    loaded = keras.models.load_model(tmp_path / "taught.keras")
    np.testing.assert_allclose(loaded(IMAGES), model(IMAGES), atol=1e-5)
    with pytest.raises(InputError, match="not saved with a model: compile it anew"):
        loaded.fit(IMAGES, LABELS, verbose=0)
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(loaded.loss)))
    assert keras.saving.deserialize_keras_object(saved).get_config() == loaded.loss.get_config()


@pytest.mark.parametrize(
    ("teachers", "learns", "message"),
    [
        ([network(classes=4)], "mean", "teachers must have the 3 classes of the model, got 4"),
        ([network(size=9)], "mean", r"take the pictures that are trained on, \(8, 8, 1\), got"),
        ([network(), network(classes=4)], "mean", "teachers must have the same classes, got 3, 4"),
        (
            [keras.Sequential([keras.Input((64,)), keras.layers.Dense(CLASSES)])],
            "mean",
            r"take the pictures that are trained on, \(8, 8, 1\), got",
        ),
        ([network()], "own", "each of the 2 leaves must have a teacher of its own, got 1"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(teachers, learns, message):
    model = tree()
    model.compile("sgd", loss=OutsideTeachers(teachers, learns=learns))
    with pytest.raises(InputError, match=message):
        model.fit(IMAGES, LABELS, verbose=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: OutsideTeachers(learns="all"), "learns must be one of mean, own, got 'all'"),
        (lambda: Teachers([]), "teachers must be one Keras model or more, got none"),
        (lambda: Teachers([network()], (1.0,)), "teachers need a mean and a std above 0"),
        (lambda: Teachers([network()], (1.0,), (0.0,)), "teachers need a mean and a std above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


def taught_config(tiny_config, *models, **fields):
    config = tiny_config(training__epochs=1.0, model__branching=(1, 1, 2), **fields)
    config.objective.name = "outside"
    config.objective.outside.models = models
    return config


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_learns_from_runs_and_files(tiny_config, trained_workdir, tmp_path, devices):
    path = str(tmp_path / "teacher.keras")
    network(classes=10).save(path)
    config = taught_config(tiny_config, str(trained_workdir.path), path)
    config.objective.outside.learns = "own"
    config.distribution.logical_devices = devices
    steps = train(config, Workdir(tmp_path / "run"), report=str)
    run = trained.restore(Workdir(tmp_path / "run"), report=str)
    assert (run.step, steps) == (10, 10)
    assert len(run.model.weights) == len(
        hne_tf.TreeEnsemble.from_config(run.model.get_config()).weights
    )


@pytest.mark.slow
def test_a_grouped_run_learns_from_a_teacher(tiny_config, trained_workdir, tmp_path):
    config = taught_config(tiny_config, str(trained_workdir.path), training__factory="grouped")
    assert train(config, Workdir(tmp_path / "run"), report=str) == 10


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ((), "must name .keras files, workdirs or functions that return a model, got none"),
        (("nothing.keras",), "got no file nothing.keras"),
        (("nothing",), "got 'nothing'"),
    ],
)
def test_teachers_that_are_not_there_are_refused(tiny_config, tmp_path, models, message):
    with pytest.raises(InputError, match=message):
        train(taught_config(tiny_config, *models), Workdir(tmp_path / "run"), report=str)


def test_without_a_part_in_it_teachers_change_nothing():
    answered = {"leaf_logits": LEAF_LOGITS, "teacher_logits": TAUGHT}
    expected = Independent().call(LABELS, LEAF_LOGITS)
    np.testing.assert_allclose(OutsideTeachers(alpha=0.0).call(LABELS, answered), expected)
