import keras
import numpy as np
import pytest
import tensorflow as tf

from hne_tf.errors import InputError
from hne_tf.export import signatures
from hne_tf.export.live import live_steps
from hne_tf.exported import tflite_file
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.model import load
from hne_tf.exported.session import AnytimeSession
from hne_tf.exported.versions import MANIFEST
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.tree import Tree

IMAGES = ImageSpec((6, 4, 2), ("ant", "bee", "cow"), (120.0, 110.0), (70.0, 60.0))
TREE = Tree((1, 2))
DESCRIPTION = Manifest.of_tree(TREE, "tiny", IMAGES.class_names, IMAGES.shape)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    resnet = ResNet("basic", (3, 4), (1, 1), (1, 2), stem_width=3)
    return TreeEnsemble(resnet, TREE, IMAGES, DeployLayers())


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, *IMAGES.shape), np.uint8)


@pytest.fixture(scope="module")
def version(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "1"
    signatures.save(signatures.signatures(model, [1, 2]), str(folder))
    (folder / MANIFEST).parent.mkdir()
    (folder / MANIFEST).write_text(DESCRIPTION.to_text())
    return folder


def converted(folder, signature_keys=("step_1", "step_2")):
    keys = list(signature_keys)
    return tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=keys).convert()


@pytest.fixture(scope="module")
def tflite(version, tmp_path_factory):
    path = tmp_path_factory.mktemp("tflite") / "model.tflite"
    tflite_file.write(path, converted(version), DESCRIPTION)
    return path


@pytest.fixture(scope="module", params=["live", "saved_model", "tflite"])
def runner(request, model):
    if request.param == "live":
        return live_steps(model)
    path = request.getfixturevalue({"saved_model": "version"}.get(request.param, "tflite"))
    return load(path).steps


def test_a_runner_describes_its_model(runner):
    assert runner.steps == DESCRIPTION.steps
    assert runner.image_shape == IMAGES.shape
    assert runner.class_names == IMAGES.class_names


def test_outputs_survive_later_calls(runner, images):
    first, second = runner.steps
    outputs = runner.run(first, {"images": images})
    kept = {name: np.array(value) for name, value in outputs.items()}
    runner.run(first, {"images": 255 - images})
    inputs = {"cache": outputs["cache_0"], "running_sum": outputs["running_sum"]}
    runner.run(second, inputs)
    for name, value in kept.items():
        np.testing.assert_array_equal(np.asarray(outputs[name]), value)


def test_steps_take_numpy_arrays(runner, images):
    first, second = runner.steps
    outputs = runner.run(first, {"images": images})
    inputs = {"cache": outputs["cache_0"], "running_sum": outputs["running_sum"]}
    expected = runner.run(second, inputs)
    got = runner.run(second, {name: np.asarray(value) for name, value in inputs.items()})
    np.testing.assert_array_equal(got["probabilities"], expected["probabilities"])


def test_sessions_of_different_batches_take_turns(runner, images):
    def answers(batch):
        return [probabilities for _, probabilities in AnytimeSession(runner, batch)]

    batches = [images, images[:1], images[1:]]
    expected = [answers(batch) for batch in batches]
    sessions = [iter(AnytimeSession(runner, batch)) for batch in batches]
    for step in range(2):
        for session, answer in zip(sessions, expected, strict=True):
            np.testing.assert_allclose(next(session)[1], answer[step], atol=1e-6)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((0, 6, 4, 2), np.uint8),
        np.zeros((6, 4, 2), np.uint8),
        np.zeros((1, 6, 4, 3), np.uint8),
        np.zeros((1, 6, 4, 2), np.float32),
    ],
    ids=["empty", "rank", "shape", "dtype"],
)
def test_images_that_a_step_cannot_take(runner, images, value):
    rule = r"images must be uint8 of shape \[1 or more, 6, 4, 2\], got .*"
    with pytest.raises(InputError, match=rule):
        runner.run(runner.steps[0], {"images": value})
    assert runner.run(runner.steps[0], {"images": images})["probabilities"].shape == (3, 3)


def test_caches_that_a_step_cannot_take(runner, images):
    first, second = runner.steps
    outputs = runner.run(first, {"images": images})
    cache, running_sum = outputs["cache_0"], outputs["running_sum"]
    for cache_, running_sum_, message in (
        (cache[:, :, :, :2], running_sum, r"cache must be float32 of shape \[1 or more, 6, 4, 3\]"),
        (cache, running_sum[:, :2], r"running_sum must be float32 of shape \[1 or more, 3\]"),
        (cache[:2], running_sum, "one batch size, got {'cache': 2, 'running_sum': 3}"),
    ):
        with pytest.raises(InputError, match=message):
            runner.run(second, {"cache": cache_, "running_sum": running_sum_})
    with pytest.raises(InputError, match="the signature takes cache, running_sum, got cache"):
        runner.run(second, {"cache": cache})


def test_live_steps_average_probabilities(model, images):
    leaf_logits = np.asarray(model(images, training=False))
    expected = keras.ops.softmax(leaf_logits, axis=-1)
    averaging = TreeEnsemble(
        model.architecture, model.tree, model.images, model.factory, "probabilities"
    )
    weights.load(averaging, weights.read(model))
    got = [p for _, p in AnytimeSession(live_steps(averaging), images)]
    np.testing.assert_allclose(got[-1], np.mean(expected, axis=1), atol=1e-5)


def test_a_file_with_a_fixed_batch_says_so(version, images, tmp_path):
    loaded = tf.saved_model.load(str(version))

    @tf.function(input_signature=[tf.TensorSpec([1, *IMAGES.shape], tf.uint8, name="images")])
    def step_1(images):
        return loaded.signatures["step_1"](images=images)

    folder = str(tmp_path / "fixed")
    tf.saved_model.save(tf.Module(), folder, signatures={"step_1": step_1})
    path = tmp_path / "fixed.tflite"
    one = Manifest.of_tree(Tree((1, 1)), "tiny", IMAGES.class_names, IMAGES.shape)
    tflite_file.write(path, converted(folder, ["step_1"]), one)
    runner = load(path).steps
    assert runner.run(runner.steps[0], {"images": images[:1]})["probabilities"].shape == (1, 3)
    with pytest.raises(InputError, match=r"shape \[1, 6, 4, 2\], got uint8 of \[3, 6, 4, 2\]"):
        runner.run(runner.steps[0], {"images": images})
