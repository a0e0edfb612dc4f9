import keras
import numpy as np
import pytest

from hne_tf.errors import InputError
from hne_tf.export.post_training import post_training, quantized_kernels
from hne_tf.models import weights
from hne_tf.models.folding import deployed
from hne_tf.models.layers.quantized import QuantizedLayers
from hne_tf.training import trained


@pytest.fixture(scope="module")
def run(trained_workdir):
    return trained.restore(trained_workdir)


@pytest.fixture(scope="module")
def float_model(run):
    return deployed(run.model)


@pytest.fixture(scope="module")
def batches(run):
    return [images for images, _ in run.data_set.evaluation_batches("train", 150).take(2)]


@pytest.fixture(scope="module")
def quantized(float_model, batches):
    return post_training(float_model, batches)


def activations(model, images):
    """By canonical name of the unit, every activation of the float tree, node by node."""
    found, inputs = {}, [model.normalise(images)]
    for block, row in enumerate(model.node_models):
        outputs = []
        for index, node in enumerate(row):
            units = {
                layer.name.removesuffix(".activation"): layer.output
                for layer in node.layers
                if isinstance(layer, keras.layers.Conv2D)
                or layer.name.endswith(".add.activation")
                or layer.name == "pool"
            }
            units["entry"] = node.input
            tapped = keras.Model(node.input, {**units, "out": node.output})
            got = tapped(inputs[model.tree.parent(block, index)])
            outputs.append(got.pop("out"))
            for unit, value in got.items():
                found[f"{node.name}.{unit}".replace(".", "/")] = np.asarray(value)
        inputs = outputs
    return found


def test_ranges_are_what_the_images_reach(float_model, quantized, batches):
    seen = [activations(float_model, images) for images in batches]
    values = weights.read(quantized)
    assert {name.split("/range/")[0] for name in values if "/range/" in name} == seen[0].keys()
    for unit in seen[0]:
        least = min(0, *(part[unit].min() for part in seen))
        greatest = max(0, *(part[unit].max() for part in seen))
        np.testing.assert_allclose(values[f"{unit}/range/min"], least, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(values[f"{unit}/range/max"], greatest, rtol=1e-4, atol=1e-5)


def test_all_kernels_but_the_heads_are_rounded(quantized):
    assert quantized.factory == QuantizedLayers()
    kernels = {name for name in weights.read(quantized) if name.endswith("kernel")}
    assert kernels - quantized_kernels(quantized) == {
        f"block2/node{node}/head/kernel" for node in range(4)
    }


def test_the_best_class_hardly_ever_changes(run, float_model, quantized):
    images, _ = next(iter(run.data_set.evaluation_batches("test", 360)))
    best, expected = (m(images).numpy().argmax(-1) for m in (quantized, float_model))
    assert (best == expected).mean() > 0.95


def test_no_images_are_refused(float_model):
    with pytest.raises(InputError, match="representative images, got none"):
        post_training(float_model, [])
