import numpy as np
import pytest
from sklearn import datasets

from hne_tf.compression.compressor import compress
from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures.resnet import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.quantized import QuantizedLayers
from hne_tf.tree import Tree


@pytest.fixture(scope="module")
def data():
    digits = datasets.load_digits()
    images = (digits.images * (255 / 16)).round().astype("uint8")[..., None]
    return images[:256], digits.target[:256]


@pytest.fixture(scope="module")
def model(data):
    resnet = ResNet("basic", widths=(4, 6), units=(1, 1), strides=(1, 2), stem_width=4)
    return TreeEnsemble(resnet, Tree((1, 2)), ImageSpec.from_data(data[0], list("0123456789")))


@pytest.mark.slow
def test_a_model_is_pruned_with_data_alone(model, data):
    before = weights.read(model)
    pruned = compress(
        model, "prune", train=data, epochs=1, sparsity=0.75, batch_size=32, report=str
    )
    kernel = weights.read(pruned)["block1/node1/unit0/conv2/kernel"]
    assert np.mean(kernel == 0) == pytest.approx(0.75, abs=0.02)
    assert pruned.prefix(1).output_shape == (None, 1, 10)
    for name, value in weights.read(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_a_model_is_quantised_without_training(model, data):
    lines = []
    quantized = compress(model, "quantize", train=data, report=lines.append)
    assert isinstance(quantized.factory, QuantizedLayers)
    assert "conv" in lines[0]
    with pytest.raises(InputError, match="a quantised model cannot be compressed again"):
        compress(quantized, "quantize", train=data)


@pytest.mark.parametrize(
    ("method", "settings", "reason"),
    [
        ("shrink", {}, "method must be one of quantize, prune, cluster, got 'shrink'"),
        ("prune", {}, "epochs must be above 0"),
        ("prune", {"epochs": 1, "sparsity": 1.5}, "sparsity must lie between 0 and 1, got 1.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(model, data, method, settings, reason):
    with pytest.raises(InputError, match=reason):
        compress(model, method, train=data, **settings)
