"""The user's Keras configuration changes no network, loss or metric of ours."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import json, sys
import keras, numpy as np
if sys.argv[1] == "other":
    keras.config.set_image_data_format("channels_first")
    keras.config.set_floatx("float16")
    keras.config.set_dtype_policy("mixed_float16")
from hne_tf import metrics, objectives
from hne_tf.image_spec import ImageSpec
from hne_tf.models.architectures import MSDNet, MobileNetV2, ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.grouped_ensemble import GroupedEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.fused import FusedGroupedLayers, FusedTrainingLayers
from hne_tf.models.layers.grouped import GroupedLayers
from hne_tf.models.layers.quantized import QuantizedLayers
from hne_tf.models.layers.served import ServedLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.tree import Tree

spec = ImageSpec((6, 8, 1), ("a", "b", "c"), (78.0,), (96.0,))
resnet = ResNet("basic", widths=(4,), units=(1,), strides=(2,), stem_width=3)
images = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 1)).astype(np.uint8)
found = {}
for kind, factories in {
    TreeEnsemble: [TrainingLayers(), FusedTrainingLayers(), TrainingLayers(precision="bfloat16"),
                   DeployLayers(), ServedLayers(), QuantizedLayers(), QuantizedLayers(True)],
    GroupedEnsemble: [GroupedLayers(), FusedGroupedLayers()],
}.items():
    for factory in factories:
        keras.utils.set_random_seed(0)
        model = kind(resnet, Tree((2,)), spec, factory)
        found[f"{kind.__name__} {factory}"] = {
            "logits": np.asarray(model(images), np.float64).tolist(),
            "type": model.output.dtype,
            "weights": [[w.name, w.dtype, list(w.shape), float(np.abs(w.numpy()).sum())]
                        for w in model.weights],
        }
# So wrong that sums and exponentials do not fit into float16.
leaf_logits = 1000.0 * np.random.default_rng(0).standard_normal((500, 4, 3)).astype(np.float32)
labels = np.arange(500) % 3
measured = {}
for kind in (metrics.BalancedAccuracy, metrics.BrierScore, metrics.Disagreement,
             metrics.EnsembleAccuracy, metrics.ExpectedCalibrationError, metrics.LeafAccuracy,
             metrics.LeafVariance, metrics.LostAnswers, metrics.NegativeLogLikelihood):
    metric = kind()
    metric.update_state(labels, keras.ops.convert_to_tensor(leaf_logits))
    measured |= {column: float(value) for column, value in metric.result().items()}
for name in objectives.OBJECTIVES:
    loss = objectives.find(name)()
    answered = keras.ops.convert_to_tensor(leaf_logits)
    if hasattr(loss, "teacher"):
        answered = {"leaf_logits": answered, "teacher_logits": answered}
    if adversary := getattr(loss, "adversary", None):
        keras.utils.set_random_seed(0)
        adversary.build(answered)
    measured[name] = float(loss(labels, answered))
print(json.dumps([found, measured]))
"""


def built(configuration):
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM, configuration],
        cwd=pathlib.Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert output.returncode == 0, output.stderr
    return json.loads(output.stdout)


def test_networks_are_the_same_under_any_keras_configuration():
    (usual, measured), (other, measured_otherwise) = built("usual"), built("other")
    assert usual.keys() == other.keys()
    for name, network in usual.items():
        assert other[name]["weights"] == network["weights"], name
        assert other[name]["type"] == network["type"], name
        np.testing.assert_allclose(other[name]["logits"], network["logits"], rtol=1e-5, atol=1e-6)
    assert np.isfinite(list(measured.values())).all()
    assert measured_otherwise == pytest.approx(measured, rel=1e-5)
