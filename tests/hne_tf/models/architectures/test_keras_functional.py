import re

import keras
import numpy as np
import pytest
from keras import layers
from tensorflow.lite.python import schema_py_generated as schema

import hne_tf as hne
from hne_tf.compression.compressor import Settings, check
from hne_tf.errors import InputError
from hne_tf.evaluation import cost
from hne_tf.export import signatures
from hne_tf.models import folding, weights
from hne_tf.models.architectures import KerasFunctional
from hne_tf.models.functional import cuts, graph, starting
from hne_tf.models.layers.served import Opaque

MEAN, STD = 100.0, 50.0
IMAGES = hne.ImageSpec((8, 8, 3), tuple("abcde"), mean=(MEAN,) * 3, std=(STD,) * 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)


LAST_OF_UNIT = ("head", "activation", "relu_")
UNITS = LAST_OF_UNIT[:2]


def convolved(x, name, filters, strides=1):
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False, name=name)(x)
    return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_bn")(x))


def classified(x, activation="softmax"):
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return layers.Dense(5, activation=activation, name="predictions")(x)


def residual(activation="softmax", shape=(8, 8, 3)):
    """Three residual units of plain sums, whose last layers have names of ours."""
    inputs = keras.Input(shape)
    x = convolved(inputs, "stem", 4)
    for unit, strides in enumerate((1, 2, 1)):
        y = convolved(x, f"unit{unit}_a", 6, strides)
        y = convolved(y, f"unit{unit}_b", 6)
        shortcut = layers.Conv2D(6, 1, strides, name=f"unit{unit}_shortcut")(x)
        x = layers.Activation("relu", name=LAST_OF_UNIT[unit])(y + shortcut)
    return keras.Model(inputs, classified(x, activation), name="residual")


def attention():
    """Patches, two attention units with norms, and a softmax of its own."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 2, 2, name="patches")(layers.Rescaling(1 / 128)(inputs))
    x = layers.Reshape((16, 6))(x)
    for unit in range(2):
        normed = layers.LayerNormalization(name=f"norm{unit}")(x)
        x = x + layers.MultiHeadAttention(2, 3, name=f"attention{unit}")(normed, normed)
        x = layers.Dense(6, activation="gelu", name=f"mlp{unit}")(x)
    x = layers.Dense(5, name="predictions")(layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, layers.Softmax()(x), name="with_attention")


def nested():
    """A model and a Sequential inside a model."""
    inner_inputs = keras.Input((8, 8, 4))
    y = convolved(inner_inputs, "unit", 4)
    inner = keras.Model(inner_inputs, layers.Add()([y, inner_inputs]), name="inner")
    tail = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(6, 3, 2)], name="tail")
    inputs = keras.Input((8, 8, 3))
    x = tail(inner(convolved(inputs, "unit", 4)))
    return keras.Model(inputs, classified(x), name="nested")


def shared():
    """A convolution that is called twice, and an activation without weights three times."""
    inputs = keras.Input((8, 8, 3))
    relu, twice = layers.ReLU(name="relu"), layers.Conv2D(4, 3, padding="same", name="twice")
    x = relu(layers.Conv2D(4, 3, 2, padding="same", name="first")(inputs))
    x = twice(relu(twice(x)))
    x = relu(layers.Conv2D(6, 3, name="last")(layers.ReLU(name="between")(x)))
    return keras.Model(inputs, classified(x), name="shared")


def moved(model, seed=0):
    """The model with every weight moved away from its first value."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = np.asarray(weight)
        if value.min() > 0:
            weight.assign(value * rng.uniform(0.5, 1.5, value.shape))
        else:
            weight.assign(value + rng.normal(0, 0.1, value.shape))
    return model


def answers(model):
    return np.asarray(model((PIXELS.astype(np.float32) - MEAN) / STD, training=False))


def sequential():
    return keras.Sequential(
        [
            *(keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Conv2D(4, 3, activation="relu")),
            *(layers.Flatten(), layers.Dense(5), layers.Activation("softmax")),
        ],
        name="sequential",
    )


MODELS = [residual, attention, nested, shared, sequential]
every_model = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)


@every_model
def test_a_single_network_answers_as_the_model(make):
    source = moved(make())
    tree = hne.TreeEnsemble.from_keras(source, (1, 1, 1), IMAGES)
    assert tree.tree.blocks == 3
    np.testing.assert_allclose(tree.probabilities(PIXELS), answers(source), atol=1e-5)
    assert np.ptp(answers(source), axis=0).max() > 1e-3
    assert tree.count_params() == source.count_params()
    (counted,) = cost.per_size(tree, [1]).values()
    assert counted.parameters == folding.deployed(tree).count_params()


def test_blocks_cost_about_the_same():
    tree = hne.TreeEnsemble.from_keras(residual(), (1, 1, 1), IMAGES)
    # More than half is in the first unit. Cuts come after norms and activations, which each
    # node of the next block would compute again.
    assert tree.architecture.cut_at == ("stem_relu", "head")


@pytest.mark.parametrize("make", [residual, attention], ids=lambda make: make.__name__)
def test_a_tree_is_the_clones_on_its_paths(make):
    tree = hne.TreeEnsemble.from_keras(
        moved(make()), (1, 2, 2), IMAGES, perturb={0: 0.1, 1: 0.1, 2: 0.1}
    )
    values, logits = weights.read(tree), np.asarray(tree(PIXELS))
    assert np.ptp(logits, axis=1).min() > 1e-3
    for leaf in range(4):
        single = hne.TreeEnsemble(tree.architecture, hne.Tree((1, 1, 1)), IMAGES)
        path = [f"block{block}/node{node}/" for block, node in enumerate(tree.tree.path(leaf))]
        own = {
            name.replace(start, f"block{block}/node0/"): value
            for name, value in values.items()
            for block, start in enumerate(path)
            if name.startswith(start)
        }
        weights.load(single, own)
        np.testing.assert_allclose(single(PIXELS)[:, 0], logits[:, leaf], atol=1e-5)


def test_all_nodes_start_from_the_model_and_new_leaves_differ():
    source = moved(residual())
    tree = hne.TreeEnsemble.from_keras(
        source, (1, 2, 2), IMAGES, classifier="replace", cut_at=UNITS
    )
    values = weights.read(tree)
    for node in range(2):
        name = f"block1/node{node}/unit1_a_bn/moving_variance"
        np.testing.assert_array_equal(values[name], source.get_layer("unit1_a_bn").moving_variance)
    # The model has a layer of the classifier's usual name.
    heads = [values[f"block2/node{node}/new_head/kernel"] for node in range(4)]
    assert all(np.abs(heads[0] - head).max() > 0.01 for head in heads[1:])
    assert not any("predictions" in name for name in values)
    assert np.ptp(np.asarray(tree(PIXELS)), axis=1).max() > 1e-2


def test_blocks_are_perturbed_or_start_anew():
    source = moved(residual())
    options = {"reinitialise": [2], "perturb": {1: 0.1}, "cut_at": UNITS}
    values = weights.read(hne.TreeEnsemble.from_keras(source, (1, 2, 1), IMAGES, **options))
    again = weights.read(hne.TreeEnsemble.from_keras(source, (1, 2, 1), IMAGES, **options))

    def of(layer):
        theirs = np.asarray(source.get_layer(layer).kernel)
        (block,) = {name[:7] for name in values if f"/{layer}/" in name}
        return theirs, [values[f"{block}node{node}/{layer}/kernel"] for node in range(2)]

    stem = values["block0/node0/stem/kernel"]
    np.testing.assert_array_equal(stem, source.get_layer("stem").kernel)
    theirs, nodes = of("unit1_a")
    for node in nodes:
        assert 0.05 < (node - theirs).std() / theirs.std() < 0.2
    assert np.abs(nodes[0] - nodes[1]).max() > 0
    np.testing.assert_array_equal(again["block1/node1/unit1_a/kernel"], nodes[1])
    name = "block1/node0/unit1_a_bn/moving_mean"
    np.testing.assert_array_equal(values[name], source.get_layer("unit1_a_bn").moving_mean)
    theirs, nodes = of("unit2_b")
    assert np.abs(nodes[0] - theirs).mean() > 0.1
    assert np.abs(nodes[0] - nodes[1]).max() > 0
    fresh = hne.TreeEnsemble.from_keras(source, (1, 2, 1), IMAGES, copy_weights=False)
    assert np.abs(weights.read(fresh)["block0/node0/stem/kernel"] - stem).mean() > 0.1


def test_a_classifier_is_added_to_features():
    whole = residual()
    features = keras.Model(whole.input, whole.get_layer("relu_").output)
    tree = hne.TreeEnsemble.from_keras(features, (1, 2), IMAGES, classifier="add")
    assert tree.output_shape == (None, 2, 5)
    tokens = keras.Model(*(lambda m: (m.input, m.get_layer("mlp1").output))(attention()))
    tree = hne.TreeEnsemble.from_keras(tokens, (1, 2), IMAGES, classifier="add")
    assert tree.output_shape == (None, 2, 5)


def test_a_model_for_any_size_is_cut_for_the_images():
    source = moved(residual(shape=(None, None, 3)))
    tree = hne.TreeEnsemble.from_keras(source, (1, 1, 1), IMAGES)
    np.testing.assert_allclose(tree.probabilities(PIXELS), answers(source), atol=1e-5)


def test_places_are_where_one_tensor_is_left():
    places = cuts.places(graph.functional(residual()))
    names = [place.name for place in places]
    assert names[:3] == ["stem", "stem_bn", "stem_relu"]
    assert [name for name in names if name in LAST_OF_UNIT] == list(LAST_OF_UNIT)
    assert names[-2:] == ["relu_", "pool"]
    # A sum of two tensors, and the activation of it, for each unit.
    assert len(names) == 3 + 3 * 2 + 1
    assert [place.shape for place in places if place.name == "activation"] == [(4, 4, 6)]


def test_cuts_are_where_the_user_says():
    tree = hne.TreeEnsemble.from_keras(
        residual(), (1, 2, 1), IMAGES, cut_at=["stem_relu", "activation"]
    )
    assert tree.architecture.cut_at == ("stem_relu", "activation")
    assert tree.node_models[0][0].output.shape == (None, 8, 8, 4)
    assert tree.node_models[1][1].output.shape == (None, 4, 4, 6)


def test_weights_have_canonical_names():
    tree = hne.TreeEnsemble.from_keras(attention(), (1, 2), IMAGES, cut_at=["patches"])
    assert {
        "block0/node0/patches/kernel",
        "block1/node1/attention0/query/kernel",
        "block1/node1/attention0/attention_output/bias",
        "block1/node1/mlp1/kernel",
    } < weights.read(tree).keys()
    tree = hne.TreeEnsemble.from_keras(nested(), (1, 2), IMAGES, cut_at=["unit_relu"])
    names = weights.read(tree).keys()
    assert "block0/node0/unit/kernel" in names
    assert "block1/node1/inner/unit/kernel" in names
    assert len(names) == len(tree.weights)


@every_model
def test_keras_files_hold_the_model(make, tmp_path):
    tree = hne.TreeEnsemble.from_keras(moved(make()), (1, 2), IMAGES, perturb={1: 0.1})
    tree.save(tmp_path / "tree.keras")
    loaded = keras.models.load_model(tmp_path / "tree.keras")
    assert loaded.architecture == tree.architecture
    np.testing.assert_array_equal(loaded(PIXELS), tree(PIXELS))


def test_a_tree_trains_and_parts_of_it_answer():
    tree = hne.TreeEnsemble.from_keras(residual(), (1, 2), IMAGES, classifier="replace")
    tree.compile("sgd", loss=hne.losses.HierarchicalDistillation(), jit_compile=False)
    before = weights.read(tree)
    tree.fit(PIXELS, np.arange(4), epochs=1, verbose=0)
    after = weights.read(tree)
    assert all(np.abs(after[n] - before[n]).max() > 0 for n in before if n.endswith("kernel"))
    np.testing.assert_allclose(tree.prefix(1)(PIXELS), tree(PIXELS)[:, :1], atol=1e-6)


@pytest.fixture(scope="module")
def flowers():
    source = attention()
    return hne.TreeEnsemble.from_keras(source, (1, 2), IMAGES, perturb={1: 0.2}, cut_at=["mlp0"])


def test_sums_stay_apart_in_what_is_served():
    tree = hne.TreeEnsemble.from_keras(residual(), (1, 2), IMAGES, cut_at=["head"])
    served = signatures.served(tree)
    for node in served.nodes_of(range(2)):
        calls = {id(x): call for call in graph.calls(node) for x in call.outputs}
        sums = [call for call in calls.values() if type(call.operation).__name__ == "Add"]
        assert sums
        read = [type(calls[id(x)].operation) for call in sums for x in call.inputs]
        assert read == [Opaque] * 2 * len(sums)
    np.testing.assert_allclose(served(PIXELS), tree(PIXELS), atol=1e-6)


def test_sums_inside_nested_models_stay_apart():
    tree = hne.TreeEnsemble.from_keras(moved(nested()), (1, 2), IMAGES, cut_at=["unit_relu"])
    served = signatures.served(tree)
    inner = served.node_models[1][1].get_layer("inner")
    (call,) = (call for call in graph.calls(inner) if graph.is_sum(call.operation))
    for x in call.inputs:
        assert type(graph.producer(inner, x).operation) is Opaque
    assert weights.read(served).keys() == weights.read(tree).keys()
    np.testing.assert_allclose(served(PIXELS), tree(PIXELS), atol=1e-6)


def test_a_sum_that_is_called_twice_stays_apart():
    inputs = keras.Input((8, 8, 3))
    add, x = layers.Add(name="add"), layers.Conv2D(3, 3, padding="same", name="first")(inputs)
    x = add([add([x, layers.Conv2D(3, 3, padding="same")(x)]), x])
    tree = hne.TreeEnsemble.from_keras(
        keras.Model(inputs, classified(x)), (1, 2), IMAGES, cut_at=["first"]
    )
    np.testing.assert_allclose(signatures.served(tree)(PIXELS), tree(PIXELS), atol=1e-6)


def test_an_int8_file_is_calibrated_by_the_converter(flowers, tmp_path):
    representative = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3), np.uint8)
    path = tmp_path / "flowers.tflite"
    manifest = hne.convert_tflite(flowers, path, "int8", representative=representative, report=str)
    assert manifest.mode == "int8"
    kernels = [
        tensor
        for graph_ in schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes())).subgraphs
        for tensor in graph_.tensors
        if tensor.type == schema.TensorType.INT8 and len(tensor.shape) == 4
    ]
    assert kernels
    exported = hne.load(path)
    expected = flowers.probabilities(PIXELS)
    for answer in (exported.predict(PIXELS, size=2), exported.session(PIXELS).run()):
        np.testing.assert_allclose(answer.probabilities, expected, atol=0.1)


def test_rooms_that_cannot_handle_it_name_the_rule(flowers, tmp_path):
    network = flowers.architecture
    assert not any((network.groupable, network.quantizable))
    with pytest.raises(InputError, match="groupable architecture only, got KerasFunctional"):
        hne.GroupedEnsemble(network, flowers.tree, IMAGES)
    with pytest.raises(InputError, match="only a quantizable architecture is compressed, got"):
        check(flowers, Settings("prune", epochs=1))
    with pytest.raises(InputError, match="int8 needs representative training images"):
        hne.convert_tflite(flowers, tmp_path / "flowers.tflite", "int8", report=str)


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


class Unregistered(layers.Layer):
    def call(self, inputs):
        return 2 * inputs


def with_layer(layer):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="first")(inputs)
    return keras.Model(inputs, classified(layers.Conv2D(4, 3, name="second")(layer(x))))


def up_to(layer):
    whole = residual()
    return keras.Model(whole.input, whole.get_layer(layer).output)


def two_inputs():
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    return keras.Model([a, b], classified(layers.Add()([a, b])))


def two_outputs():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3)(inputs)
    return keras.Model(inputs, [classified(x), x])


def densely_connected():
    """Nothing can be cut: all read the images."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Concatenate()([layers.Conv2D(4, 3, padding="same")(inputs), inputs])
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)))


def weights_in_two_layers():
    inner_inputs = keras.Input((8, 8, 3))
    both = layers.Conv2D(3, 3, padding="same", name="both")
    inner = keras.Model(inner_inputs, both(inner_inputs), name="inner")
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, classified(both(inner(inputs))))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Subclassed, {}, "must be a functional Keras model, keras.Model(inputs, outputs), got Sub"),
        (lambda: keras.Sequential([layers.Dense(5)], name="s"), {}, "must be built: begin it with"),
        (lambda: "a model", {}, "must be a functional Keras model"),
        (two_inputs, {}, "the model must have one input, got 2"),
        (two_outputs, {}, "the model must have one output, got 2"),
        (densely_connected, {}, "must have 2 places to cut it in 3 blocks with weights, got 2: "),
        (residual, {"branching": (1,) * 12}, "must have 11 places to cut it in 12 blocks with"),
        (residual, {"cut_at": ["stem_relu", "no"]}, "must name layers of the model, got 'no'"),
        (
            residual,
            {"cut_at": ["stem_relu", "unit1_a"]},
            "a single activation is all that later layers read, got 'unit1_a'; it can be cut at "
            "stem, stem_bn, stem_relu, ",
        ),
        (residual, {"cut_at": ["head"]}, "cut_at must name 2 layers for 3 blocks, got head"),
        (
            residual,
            {"cut_at": ["relu_", "head"]},
            "in the model's order, got relu_, head",
        ),
        (residual, {"cut_at": ["head", "head"]}, "must name different layers"),
        (residual, {"classifier": "no"}, "one of keep, replace, add, got 'no'"),
        (lambda: residual("sigmoid"), {}, "got the activation sigmoid of 'predictions'"),
        (
            lambda: up_to("unit2_b_bn"),
            {"classifier": "replace"},
            "must end in a Dense or Conv2D classifier to have it replaced, got 'unit2_b_bn'",
        ),
        (lambda: residual(shape=(9, 8, 3)), {}, "the model's shape (9, 8, 3), got (8, 8, 3)"),
        (
            lambda: up_to("pool"),
            {},
            "must give logits of the 5 classes, got outputs of shape (6,)",
        ),
        (
            shared,
            {"cut_at": ["first", "relu"]},
            "a single activation is all that later layers read, got 'relu'",
        ),
        (
            lambda: with_layer(Unregistered(name="mine")),
            {},
            "custom ones registered (keras.saving.register_keras_serializable), got Unregistered "
            "'mine'",
        ),
        (lambda: with_layer(layers.Lambda(lambda x: x, name="odd")), {}, "got Lambda 'odd'"),
        (weights_in_two_layers, {}, "both/kernel in both"),
        (residual, {"perturb": {3: 0.1}}, "perturb must name blocks from 0 to 2, got 3"),
        (residual, {"perturb": {1: -0.1}}, "scales of 0 or more, got -0.1"),
        (residual, {"reinitialise": [-1]}, "reinitialise must name blocks from 0 to 2, got -1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make, options, message):
    model = make()
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        hne.TreeEnsemble.from_keras(model, **{"branching": (1, 2, 2), "images": IMAGES, **options})
    assert "\n" not in str(refused.value)


def test_a_layer_with_weights_is_not_shared_between_blocks():
    inputs = keras.Input((8, 8, 3))
    twice = layers.Conv2D(3, 3, padding="same", name="twice")
    x = twice(layers.ReLU(name="between")(twice(inputs)))
    x = layers.Conv2D(4, 3, name="second")(layers.Conv2D(4, 3, name="first")(x))
    source = keras.Model(inputs, classified(x))
    with pytest.raises(InputError, match="in one block only, got 'twice' on both sides of 'betw"):
        hne.TreeEnsemble.from_keras(source, (1, 2), IMAGES, cut_at=["between"])
    # Better balanced than anywhere else.
    tree = hne.TreeEnsemble.from_keras(source, (1, 2), IMAGES)
    assert tree.architecture.cut_at == ("first",)


def test_weights_of_other_shapes_are_refused():
    tree = hne.TreeEnsemble.from_keras(residual(), (1, 2), IMAGES)
    inputs = keras.Input((8, 8, 3))
    other = keras.Model(inputs, layers.Conv2D(7, 3, use_bias=False, name="stem")(inputs))
    before = weights.read(tree)
    message = "weights of 'stem' must have shapes [(3, 3, 3, 4)], got [(3, 3, 3, 7)]"
    with pytest.raises(InputError, match=re.escape(message)):
        starting.start(tree, other)
    for name, value in weights.read(tree).items():
        np.testing.assert_array_equal(value, before[name])


def test_settings_make_the_same_network():
    cut = KerasFunctional.of(residual(), IMAGES.shape, 3)
    assert KerasFunctional.from_config(cut.get_config()) == cut
    assert cut.blocks == 3
    assert len(repr(cut)) < 200
