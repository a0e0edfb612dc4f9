import functools

import keras
import numpy as np
import pytest
from keras import ops

from hne_tf import metrics, objectives
from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import MSDNet, ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.grouped_ensemble import GroupedEnsemble
from hne_tf.models.layers.grouped import GroupedLayers
from hne_tf.tree import Tree

IMAGES = ImageSpec((8, 8, 1), ("ant", "bee", "cat"), (120.0,), (60.0,))
RESNET = ResNet("basic", (4, 4, 4), (1, 1, 1), (1, 2, 1), stem_width=4)
SMALL = ResNet("basic", (4, 4), (1, 1), (1, 2), stem_width=4)
random = np.random.default_rng(0)
X = random.integers(0, 256, (24, *IMAGES.shape), np.uint8)
Y = random.integers(0, 3, 24)


def build(kind=TreeEnsemble, tree=None, network=RESNET):
    keras.utils.set_random_seed(0)
    layers = GroupedLayers(split=True) if kind is GroupedEnsemble else None
    return kind(network, tree or Tree((1, 2, 2)), IMAGES, layers)


def figures_of_fit(model, labels=Y, **options):
    """What an epoch of `fit` records."""
    history = model.fit(X, labels, shuffle=False, verbose=0, **options).history
    return {name: value for name, (value,) in history.items()}


@pytest.mark.slow
def test_losses_and_metrics_take_their_sizes_from_the_leaves(tmp_path):
    model = build(tree=Tree((2, 2)), network=SMALL)
    model.compile(
        "sgd",
        loss=objectives.HierarchicalDistillation(),
        metrics=[metrics.EnsembleAccuracy(), metrics.ExpectedCalibrationError()],
    )
    history = model.fit(X, Y, epochs=2, batch_size=12, verbose=0).history
    figures = {f"{name}_{size}" for name in ("accuracy", "ece") for size in (1, 2, 4)}
    assert history.keys() == {"loss", *figures}
    expected = model.evaluate(X, Y, verbose=0, return_dict=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(X, Y, verbose=0, return_dict=True) == pytest.approx(expected, abs=1e-5)
    # It goes on from where it was.
    figures_of = functools.partial(figures_of_fit, batch_size=12)
    assert figures_of(loaded) == pytest.approx(figures_of(model), rel=1e-4)


def test_one_hot_labels_and_weights_of_examples_in_fit():
    weighted = {}
    for name, labels in (("numbers", Y), ("one-hot", np.eye(3)[Y])):
        model = build()
        model.compile(
            "sgd",
            objectives.Independent(),
            metrics=[metrics.EnsembleAccuracy()],
            weighted_metrics=[metrics.NegativeLogLikelihood()],
            run_eagerly=True,
        )
        weighted[name] = figures_of_fit(model, labels, sample_weight=np.arange(24) / 12)
    assert weighted["one-hot"] == pytest.approx(weighted["numbers"], rel=1e-5)


@pytest.mark.slow
def test_a_loaded_ramp_goes_on_where_it_was(tmp_path):
    tree = Tree((1, 2))
    model = build(tree=tree, network=SMALL)
    loss = objectives.HierarchicalDistillation(alpha=0.8, ramp_steps=8)
    model.compile(keras.optimizers.SGD(0.0), loss)
    model.fit(X, Y, epochs=3, batch_size=24, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.loss.get_config()["ramp_steps"] == 8
    for _ in range(3):
        # Weights do not move, so the loss is that of the ramp's step alone.
        values = [m.fit(X, Y, batch_size=24, verbose=0).history["loss"] for m in (model, loaded)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)
        constant = build(tree=tree, network=SMALL)
        alpha = 0.8 * (int(loaded.optimizer.iterations) - 1) / 8
        constant.compile("sgd", objectives.HierarchicalDistillation(alpha=alpha), run_eagerly=True)
        weights.load(constant, weights.read(model))
        (expected,) = constant.fit(X, Y, batch_size=24, verbose=0).history["loss"]
        assert values[1] == pytest.approx([expected], rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        ("sparse_categorical_crossentropy", "'sparse_categorical_crossentropy'"),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), "SparseCategorical"),
        (keras.losses.categorical_crossentropy, "categorical_crossentropy"),
    ],
)
def test_losses_of_one_answer_are_refused(loss, named):
    with pytest.raises(InputError, match=rf"such as hne_tf\.losses\.Indep.*, got Keras's {named}"):
        build().compile("sgd", loss)


@pytest.mark.parametrize(
    "metric", ["accuracy", keras.metrics.SparseCategoricalAccuracy(), keras.metrics.AUC()]
)
@pytest.mark.parametrize("argument", ["metrics", "weighted_metrics"])
def test_metrics_of_one_answer_are_refused(metric, argument):
    with pytest.raises(InputError, match=r"such as hne_tf\.metrics\.EnsembleAccuracy\(\), got"):
        build().compile("sgd", objectives.Independent(), **{argument: [metric]})


def leaf_norm(y_true, y_pred):
    return ops.mean(ops.square(y_pred), axis=(1, 2))


def test_functions_of_one_s_own_are_taken():
    model = build()
    wrapped = keras.metrics.MeanMetricWrapper(leaf_norm, name="wrapped")
    model.compile("sgd", leaf_norm, metrics=[leaf_norm, wrapped], run_eagerly=True)
    history = model.fit(X, Y, verbose=0).history
    assert history["leaf_norm"] == pytest.approx(history["wrapped"])


def test_fit_traces_a_step_once():
    model = build(tree=Tree((1, 2)), network=SMALL)
    traced = []

    def loss(y_true, y_pred):
        traced.append(y_pred)
        return leaf_norm(y_true, y_pred)

    model.compile("adam", loss, metrics=[metrics.EnsembleAccuracy()])
    model.fit(X, Y, batch_size=8, verbose=0)
    assert len(traced) == 1


@keras.saving.register_keras_serializable("test_compiling")
class Quiet(objectives.Independent):
    """Independent leaves, and a penalty on what two nodes give."""

    activations = ("block0.node0", "block1.node1")

    def call(self, y_true, y_pred):
        penalties = [
            ops.mean(ops.square(ops.cast(x, "float32")), axis=(1, 2, 3))
            for x in (y_pred[name] for name in self.activations)
        ]
        return super().call(y_true, y_pred["leaf_logits"]) + 0.5 * sum(penalties)


@pytest.mark.parametrize("kind", [TreeEnsemble, GroupedEnsemble])
def test_an_objective_gets_the_activations_that_it_asks_for(kind, tmp_path):
    model = build(kind, Tree((1, 2, 1)))
    logits = model(X, training=False)
    trunk = keras.Model(model.inputs, model.with_activations(["block0.node0"]).output)(X)
    np.testing.assert_allclose(trunk["leaf_logits"], logits, atol=1e-6)
    model.compile(keras.optimizers.SGD(0.1), Quiet(), metrics=[metrics.EnsembleAccuracy()])
    answered = model.with_activations(Quiet.activations)(X, training=False)
    expected = float(Quiet()(Y, answered))
    assert model.evaluate(X, Y, verbose=0)[0] == pytest.approx(expected, rel=1e-5)
    # Still leaf logits to everybody else.
    np.testing.assert_allclose(model(X, training=False), logits, atol=1e-6)
    history = model.fit(X, Y, epochs=6, batch_size=24, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(X, Y, verbose=0) == pytest.approx(
        model.evaluate(X, Y, verbose=0), rel=1e-4
    )


@pytest.mark.slow
def test_penalised_activations_shrink_below_what_they_are_without():
    sizes = {}
    for loss in (Quiet(), objectives.Independent()):
        model = build(tree=Tree((1, 2, 1)))
        model.compile(keras.optimizers.SGD(0.05), loss, run_eagerly=True)
        model.fit(X, Y, epochs=8, batch_size=24, verbose=0)
        trunk = model.with_activations(["block0.node0"])(X)["block0.node0"]
        sizes[type(loss)] = float(ops.mean(ops.square(trunk)))
    assert sizes[Quiet] < 0.9 * sizes[objectives.Independent]


SCALES = MSDNet((2, 1), growth=2, scale_factors=(1, 2), bottlenecks=(0, 0), head_width=4)


@pytest.mark.parametrize(
    ("network", "tree"), [(RESNET, Tree((1, 2, 2))), (SCALES, Exits(2))], ids=["tree", "exits"]
)
def test_both_forms_give_the_same_activations(network, tree):
    branched, grouped = build(tree=tree, network=network), build(GroupedEnsemble, tree, network)
    weights.load(grouped, weights.read(branched))
    names = ["block1.node1", "block1.node0", "block0.node0"]
    one, other = (m.with_activations(names)(X, training=False) for m in (branched, grouped))
    assert one.keys() == other.keys() == {"leaf_logits", *names}
    for name in one:
        for a, b in zip(
            keras.tree.flatten(one[name]), keras.tree.flatten(other[name]), strict=True
        ):
            np.testing.assert_allclose(a, np.reshape(b, a.shape), atol=1e-4)


def test_activations_of_unknown_nodes_are_refused():
    with pytest.raises(InputError, match=r"block0\.node0 to block2\.node3, got 'block3\.node0'"):
        build().with_activations(["block3.node0"])
    loss = Quiet()
    loss.activations = ("block7.node0",)
    with pytest.raises(InputError, match=r"got 'block7\.node0'"):
        build().compile("sgd", loss)
