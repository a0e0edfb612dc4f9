import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest

import hne_tf
from hne_tf import pretrained
from hne_tf.data import load
from hne_tf.errors import InputError
from hne_tf.exported.manifest import Manifest
from hne_tf.models import weights
from hne_tf.models.folding import deployed
from hne_tf.training import trained
from hne_tf.training.config import default

NAMES = pretrained.names()


def description_of(name):
    return json.loads((pathlib.Path(pretrained.__file__).parent / f"{name}.json").read_text())


def test_there_are_models_of_cifar10():
    assert NAMES == ["cifar10_cpu", "cifar10_small"]


@pytest.mark.parametrize(
    "name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]
)
def test_folded_and_trainable_weights_answer_alike(name):
    model, folded = hne_tf.from_pretrained(name), hne_tf.from_pretrained(name, deploy=True)
    images = np.random.default_rng(0).integers(0, 256, (4, *model.images.shape), np.uint8)
    np.testing.assert_allclose(
        folded(images, training=False), model(images, training=False), atol=1e-3
    )
    assert len(weights.read(folded)) < len(weights.read(model))


def test_files_are_small_enough_for_a_package():
    files = pathlib.Path(pretrained.__file__).parent.glob("*.npz")
    assert sum(path.stat().st_size for path in files) < 8 * 2**20


@pytest.mark.skipif("HNE_TFDS_DIR" not in os.environ, reason="HNE_TFDS_DIR names no data sets")
@pytest.mark.parametrize("name", NAMES)
def test_cifar10_is_answered_as_well_as_described(name):
    section = default().data
    section.update(name="cifar10", data_dir=os.environ["HNE_TFDS_DIR"])
    images, labels = next(iter(load(section).evaluation_batches("test", 2000)))
    leaf_logits = hne_tf.from_pretrained(name, deploy=True)(images).numpy()
    described = description_of(name)["accuracy"]["by_size"]
    for size, accuracy in described.items():
        best = leaf_logits[:, : int(size)].mean(axis=1).argmax(axis=1)
        # Four standard deviations of an accuracy on 2,000 images.
        assert abs((best == labels.numpy()).mean() - accuracy) < 0.033


def test_weights_come_back_as_the_run_that_they_were_written_from(trained_workdir, tmp_path):
    run = trained.restore(trained_workdir)
    spec = run.data_set.spec
    manifest = Manifest.of_tree(run.model.tree, "tiny", spec.class_names, spec.shape)
    pretrained.save(run, manifest, tmp_path / "tiny.npz")
    again = pretrained.restore(str(tmp_path / "tiny.npz"))
    assert again.config == run.config
    assert (again.step, again.total_steps) == (run.total_steps, run.total_steps)
    images, _ = next(iter(again.data_set.evaluation_batches("test", 8)))
    np.testing.assert_array_equal(
        again.model(images, training=False), run.model(images, training=False)
    )


def test_compressed_runs_give_no_weights_to_train_further(trained_workdir, tmp_path):
    run = trained.restore(trained_workdir)
    pretrained.check(run, tmp_path / "tiny.npz")
    compressed = dataclasses.replace(run, model=deployed(run.model))
    with pytest.raises(InputError, match=r"compressed one, of DeployLayers"):
        pretrained.check(compressed, tmp_path / "tiny.npz")
