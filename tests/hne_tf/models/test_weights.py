import re

import keras
import numpy as np
import pytest

from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.tree import Tree

NORM = ("norm/gamma", "norm/beta", "norm/moving_mean", "norm/moving_variance")
IMAGES = ImageSpec((4, 4, 1), ("ant", "bee", "cow"), mean=(0.0,), std=(1.0,))


def build(unit="basic", layers=None, name="hne"):
    resnet = ResNet(unit, (2, 4), (1, 1), (1, 2), stem_width=2)
    return TreeEnsemble(resnet, Tree((1, 2)), IMAGES, layers or TrainingLayers(), name=name)


def names(unit, per_unit):
    """Every canonical name of `build(unit)`, with so many names in a convolution's unit."""
    convs = {"basic": 2, "bottleneck": 3}[unit]
    places = ["block0/node0/stem", *(f"block0/node0/unit0/conv{i + 1}" for i in range(convs))]
    for node in ("block1/node0", "block1/node1"):
        places += [f"{node}/unit0/conv{i + 1}" for i in range(convs)]
        places.append(f"{node}/unit0/shortcut")
    expected = {
        f"{node}/head/{kind}"
        for node in ("block1/node0", "block1/node1")
        for kind in ("kernel", "bias")
    }
    for place in places:
        depthwise = unit == "bottleneck" and place.endswith("conv2")
        expected.add(f"{place}/depthwise_kernel" if depthwise else f"{place}/kernel")
        expected |= {f"{place}/{kind}" for kind in per_unit}
    return expected


@pytest.mark.parametrize("unit", ["basic", "bottleneck"])
@pytest.mark.parametrize(
    ("layers", "per_unit"),
    [(TrainingLayers(), NORM), (DeployLayers(), ("bias",))],
    ids=["training", "deploy"],
)
def test_names_are_canonical(unit, layers, per_unit):
    model = build(unit, layers)
    assert weights.read(model).keys() == names(unit, per_unit)
    assert len(weights.read(model)) == len(model.weights)


def test_names_do_not_depend_on_the_model_s_name_or_on_other_models():
    build()
    assert weights.read(build(name="other")).keys() == names("basic", NORM)


def test_a_name_leads_to_its_weight():
    model = build("bottleneck")
    found = weights.variables(model)
    second = model.node_models[1][1]
    for name, variable in (
        ("block1/node1/unit0/conv1/kernel", second.get_layer("unit0.conv1").kernel),
        ("block1/node1/unit0/conv2/depthwise_kernel", second.get_layer("unit0.conv2").kernel),
        ("block1/node1/unit0/conv3/norm/gamma", second.get_layer("unit0.conv3.norm").gamma),
        ("block1/node1/head/bias", second.get_layer("head").bias),
    ):
        assert found[name] is variable


def test_read_copies_and_load_sets_every_weight():
    model = build()
    before = weights.read(model)
    rng = np.random.default_rng(0)
    new = {name: rng.normal(0, 1, value.shape).astype(np.float32) for name, value in before.items()}
    weights.load(model, new)
    for name, value in weights.read(model).items():
        np.testing.assert_array_equal(value, new[name])
    assert not any(np.array_equal(before[name], new[name]) for name in new)


KERNEL = "block1/node1/unit0/conv1/kernel"


def without(values):
    return {name: value for name, value in values.items() if name != KERNEL}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without, f"must have the model's names; 1 differ, first {KERNEL}"),
        (lambda values: {**values, "odd": np.zeros(1)}, "1 differ, first odd"),
        (
            lambda values: {**without(values), "block1/node1/unit0/conv1/weight": values[KERNEL]},
            f"2 differ, first {KERNEL}",
        ),
        (lambda values: {}, "differ, first block0/node0/stem/kernel"),
        (
            lambda values: {**values, KERNEL: values[KERNEL][..., 0]},
            f"{KERNEL} must have shape (3, 3, 2, 4), got (3, 3, 2)",
        ),
        (
            lambda values: {**values, KERNEL: values[KERNEL].swapaxes(2, 3)},
            f"{KERNEL} must have shape (3, 3, 2, 4), got (3, 3, 4, 2)",
        ),
    ],
    ids=["missing", "extra", "renamed", "none", "rank", "transposed"],
)
def test_other_weights_are_refused_and_nothing_is_set(spoil, message):
    model = build()
    before = weights.read(model)
    with pytest.raises(InputError, match=re.escape(message)):
        weights.load(model, spoil({name: value + 1 for name, value in before.items()}))
    for name, value in weights.read(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_npz_files_return_the_same_weights(tmp_path):
    values = weights.read(build("bottleneck"))
    weights.save_npz(tmp_path / "weights.npz", values)
    restored = weights.read_npz(tmp_path / "weights.npz")
    assert list(restored) == list(values)
    for name, value in restored.items():
        assert value.dtype == values[name].dtype
        np.testing.assert_array_equal(value, values[name])
    assert [file.name for file in tmp_path.iterdir()] == ["weights.npz"]


class _Unreadable:
    def __array__(self, dtype=None, copy=None):
        raise OSError("cannot be read")


def test_a_save_that_fails_midway_leaves_the_old_file(tmp_path):
    path = tmp_path / "weights.npz"
    old = {"kernel": np.arange(3.0)}
    weights.save_npz(path, old)
    with pytest.raises(OSError, match="cannot be read"):
        weights.save_npz(path, {"kernel": np.zeros(1000), "bias": _Unreadable()})
    np.testing.assert_array_equal(weights.read_npz(path)["kernel"], old["kernel"])


def test_a_save_replaces_the_old_file(tmp_path):
    path = tmp_path / "weights.npz"
    weights.save_npz(path, {"kernel": np.zeros(3)})
    weights.save_npz(path, {"bias": np.ones(2)})
    assert list(weights.read_npz(path)) == ["bias"]


def test_pickles_are_not_read(tmp_path):
    np.savez(tmp_path / "weights.npz", kernel=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        weights.read_npz(tmp_path / "weights.npz")


def test_only_depthwise_kernels_are_called_so():
    plain = keras.layers.Conv2D(2, 1, name="a.b")
    depthwise = keras.layers.DepthwiseConv2D(1, name="c")
    depthwise(plain(keras.Input((4, 4, 2))))
    assert weights.canonical_name("block3.node1", plain, plain.kernel) == "block3/node1/a/b/kernel"
    assert weights.canonical_name("block3.node1", plain, plain.bias) == "block3/node1/a/b/bias"
    for variable, kind in ((depthwise.kernel, "depthwise_kernel"), (depthwise.bias, "bias")):
        name = weights.canonical_name("block3.node1", depthwise, variable)
        assert name == f"block3/node1/c/{kind}"


def test_weights_without_a_name_are_numbered_in_their_layer():
    class Unnamed(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(1,))
            self.kernel = self.add_weight(shape=(1,), name="kernel")
            self.offset = self.add_weight(shape=(1,))

    expected = [f"block0/node1/odd/{name}" for name in ("variable_0", "kernel", "variable_1")]
    # Keras goes on counting from one to the other.
    for _ in range(2):
        layer = Unnamed(name="odd")
        layer.build((None, 1))
        named = [weights.canonical_name("block0.node1", layer, each) for each in layer.weights]
        assert named == expected
