import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from hne_tf.compression.compressed_run import compress_run
from hne_tf.compression.compressor import Settings
from hne_tf.errors import InputError
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.folding import deployed
from hne_tf.models.layers.quantized import QuantizedLayers
from hne_tf.training import build, checkpoints, trained
from hne_tf.training.loop import train
from hne_tf.training.workdir import Workdir


@pytest.fixture(scope="module")
def compressed_workdir(trained_workdir, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "int8"
    compress_run(trained.restore(trained_workdir), Settings("quantize"), path, lambda line: None)
    return Workdir(path)


@pytest.fixture
def copied(compressed_workdir, tmp_path):
    """A compressed run that a test may damage."""
    return Workdir(shutil.copytree(compressed_workdir.path, tmp_path / "run"))


def test_a_run_comes_back_in_the_form_it_was_trained_in(trained_workdir):
    run = trained.restore(trained_workdir)
    images, _ = next(iter(run.data_set.evaluation_batches("test", 16)))
    folded = deployed(run.model)
    assert folded is not run.model
    np.testing.assert_allclose(folded(images), run.model(images, training=False), atol=1e-3)


def test_a_run_trained_grouped_goes_on_grouped_and_comes_back_branched(tiny_config, tmp_path):
    workdir, reports = Workdir(tmp_path / "run"), []
    train(tiny_config(training__factory="grouped", training__epochs=1.0), workdir)
    train(tiny_config(training__epochs=1.0), workdir, report=reports.append)
    assert reports[0] == "resumed at step 10 of 10"
    run = trained.restore(workdir)
    assert isinstance(run.model, TreeEnsemble)
    grouped = build.training_model(run.config, run.data_set.spec)
    checkpoint = tf.train.Checkpoint(model=grouped)
    checkpoints.restore_newest(checkpoint, workdir.checkpoints, print, partial=True)
    images, _ = next(iter(run.data_set.evaluation_batches("test", 16)))
    expected = grouped(images, training=False)
    np.testing.assert_allclose(run.model(images, training=False), expected, rtol=1e-4, atol=1e-4)


def test_a_compressed_run_comes_back_and_is_deployed_as_it_is(compressed_workdir):
    run = trained.restore(compressed_workdir)
    assert run.model.factory == QuantizedLayers()
    assert deployed(run.model) is run.model


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(b"\0" * 1000 + path.read_bytes()[1000:]),
    ],
    ids=["missing", "empty", "cut", "overwritten"],
)
def test_damaged_weights_are_reported(copied, damage):
    damage(copied.weights_path)
    with pytest.raises(InputError, match=r"weights\.npz"):
        trained.restore(copied)


def test_weights_of_another_model_are_reported(copied):
    values = dict(np.load(copied.weights_path))
    values["block0/node0/stem/bias"] = values["block0/node0/stem/bias"][:1]
    np.savez(copied.weights_path, **values)
    with pytest.raises(InputError, match="block0/node0/stem/bias must have shape"):
        trained.restore(copied)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": "x", "total_steps": 1}'])
def test_a_damaged_description_is_reported(copied, text):
    copied.compression_path.write_text(text)
    with pytest.raises(InputError, match=r"compression\.json"):
        trained.restore(copied)


def test_an_unknown_form_is_reported(copied):
    description = json.loads(copied.compression_path.read_text())
    copied.compression_path.write_text(json.dumps({**description, "factory": "TrainingLayers"}))
    with pytest.raises(InputError, match="factory must be one of DeployLayers, QuantizedLayers"):
        trained.restore(copied)


def test_representative_images_are_spread_over_the_training_split(trained_workdir):
    run = trained.restore(trained_workdir)
    train, examples = run.data_set.splits["train"], run.data_set.examples("train")
    batches = list(run.representative(300))
    assert [len(batch) for batch in batches] == [256, 44]
    np.testing.assert_array_equal(batches[1][-1], train.images([299 * examples // 300])[0])
    assert sum(len(batch) for batch in run.representative(10**6)) == examples
    with pytest.raises(InputError, match="representative_images must be 1 or more, got 0"):
        run.representative(0)


def test_another_backend_does_not_read_tensorflows_runs(trained_workdir, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(InputError, match=r"KERAS_BACKEND=jax reads runs of that backend, got .*"):
        trained.restore(trained_workdir, report=str)
