import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from hne_tf.errors import InputError
from hne_tf.export import signatures
from hne_tf.export.live import LiveSteps
from hne_tf.exported import manifest, steps, tflite_file
from hne_tf.exported.session import AnytimeSession
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures.resnet import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.factory import DeployLayers
from hne_tf.tree import Tree

IMAGES = ImageSpec((6, 4, 2), ("ant", "bee", "cow"), (120.0, 110.0), (70.0, 60.0))
DESCRIPTION = {
    "format": manifest.FORMAT,
    "input": {"name": "images", "dtype": "uint8", "shape": [None, *IMAGES.shape]},
    "classes": list(IMAGES.class_names),
    "steps": [manifest.step_entry(step) for step in Tree((1, 2)).steps],
}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    resnet = ResNet("basic", (3, 4), (1, 1), (1, 2), stem_width=3)
    return TreeEnsemble(resnet, Tree((1, 2)), IMAGES, DeployLayers())


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, *IMAGES.shape), np.uint8)


@pytest.fixture(scope="module")
def version(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "1"
    signatures.save(signatures.signatures(model, [1, 2]), str(folder))
    write_manifest(folder, DESCRIPTION)
    return folder


def write_manifest(folder, description):
    path = folder / manifest.MANIFEST
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(description if isinstance(description, str) else json.dumps(description))


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
        return LiveSteps(model)
    path = request.getfixturevalue({"saved_model": "version"}.get(request.param, "tflite"))
    return steps.load(path)


def test_a_runner_describes_its_model(runner):
    assert list(runner.steps) == DESCRIPTION["steps"]
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
    with pytest.raises(InputError, match="the step takes cache, running_sum, got cache"):
        runner.run(second, {"cache": cache})


def test_live_steps_average_probabilities(model, images):
    leaf_logits = np.asarray(model(images, training=False))
    expected = keras.ops.softmax(leaf_logits, axis=-1)
    averaging = TreeEnsemble(
        model.architecture, model.tree, model.images, model.factory, "probabilities"
    )
    weights.load(averaging, weights.read(model))
    got = [p for _, p in AnytimeSession(LiveSteps(averaging), images)]
    np.testing.assert_allclose(got[-1], np.mean(expected, axis=1), atol=1e-5)


def test_a_file_with_a_fixed_batch_says_so(version, images, tmp_path):
    loaded = tf.saved_model.load(str(version))

    @tf.function(input_signature=[tf.TensorSpec([1, *IMAGES.shape], tf.uint8, name="images")])
    def step_1(images):
        return loaded.signatures["step_1"](images=images)

    folder = str(tmp_path / "fixed")
    tf.saved_model.save(tf.Module(), folder, signatures={"step_1": step_1})
    path = tmp_path / "fixed.tflite"
    one = {**DESCRIPTION, "steps": DESCRIPTION["steps"][:1]}
    tflite_file.write(path, converted(folder, ["step_1"]), one)
    runner = steps.load(path)
    assert runner.run(runner.steps[0], {"images": images[:1]})["probabilities"].shape == (1, 3)
    with pytest.raises(InputError, match=r"shape \[1, 6, 4, 2\], got uint8 of \[3, 6, 4, 2\]"):
        runner.run(runner.steps[0], {"images": images})


# What `load` refuses.


def test_load_takes_versions_and_tflite_files_only(tmp_path):
    (tmp_path / "weights.npz").touch()
    for name in ("missing", "weights.npz", "missing.tflite", "."):
        with pytest.raises(InputError, match=r"a model must be a \.tflite file or a version"):
            steps.load(tmp_path / name)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("{", "must be JSON"),
        ([], "must have format 1"),
        ({**DESCRIPTION, "format": 0}, "must have format 1, got 0"),
        ({name: DESCRIPTION[name] for name in ("format", "input", "classes")}, "without: 'steps'"),
        ({**DESCRIPTION, "input": {"shape": []}}, "must describe its input"),
    ],
)
def test_bad_manifests(tmp_path, description, message):
    write_manifest(tmp_path, description)
    with pytest.raises(InputError, match=message) as raised:
        steps.load(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_steps_without_a_signature(version, tflite, tmp_path):
    extra = [manifest.step_entry(step) for step in Tree((1, 3)).steps]
    path = tmp_path / "model.tflite"
    tflite_file.write(path, tflite_file.read_flatbuffer(tflite), {**DESCRIPTION, "steps": extra})
    with pytest.raises(InputError, match=r"a signature for each step .* without step_3"):
        steps.load(path)
    tflite_file.write(path, tflite_file.read_flatbuffer(tflite), {**DESCRIPTION, "steps": []})
    with pytest.raises(InputError, match=r"a signature for each step .* with 0 steps"):
        steps.load(path)


def test_a_file_that_is_cut_off(tflite, tmp_path):
    path = tmp_path / "cut.tflite"
    path.write_bytes(tflite.read_bytes()[:-100])
    with pytest.raises(InputError):
        steps.load(path)


def test_threads(version, tflite):
    assert steps.load(tflite, threads=2).steps
    for threads in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="threads must be 1 or more"):
            steps.load(tflite, threads=threads)
    with pytest.raises(InputError, match=r"threads are set for a \.tflite file"):
        steps.load(version, threads=1)
