"""What users made with version 0.1.0 loads, evaluates, resumes and serves."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import hne_tf as hne
from hne_tf.models import weights
from hne_tf.training import config as configs
from hne_tf.training import trained
from hne_tf.training.loop import train
from hne_tf.training.workdir import Workdir

ARTEFACTS = pathlib.Path(__file__).parent / "artefacts"


@pytest.fixture(scope="module")
def run():
    return trained.restore(Workdir(ARTEFACTS / "run"), report=str)


@pytest.fixture(scope="module")
def images(run):
    return next(iter(run.batches("test", 16)))[0].numpy()


def test_a_run_evaluates_to_the_figures_that_it_had(run):
    before = json.loads((ARTEFACTS / "run/evaluation.json").read_text())
    after = run.evaluate("test")
    for old, new in zip(before["sizes"], after["sizes"], strict=True):
        for figure, value in old.items():
            if figure != "reliability":
                assert new[figure] == pytest.approx(value, rel=1e-3, abs=1e-4), figure


def test_a_run_resumes_and_ends_as_it_did(run, tmp_path):
    workdir = Workdir(shutil.copytree(ARTEFACTS / "run", tmp_path / "run"))
    for path in workdir.checkpoints.glob("ckpt-40.*"):
        path.unlink()
    lines = []
    assert train(workdir.read_config(), workdir, report=lines.append) == 40
    assert "resumed at step 30 of 40" in lines
    resumed = weights.read(trained.restore(workdir, report=str).model)
    for name, value in weights.read(run.model).items():
        # Sums round otherwise on a machine with other threads.
        np.testing.assert_allclose(resumed[name], value, atol=1e-2, err_msg=name)


def test_settings_have_the_digest_that_they_had(run):
    manifest = json.loads((ARTEFACTS / "models/old/1/assets.extra/hne_manifest.json").read_text())
    assert configs.digest(run.config) == manifest["config_digest"]


@pytest.mark.parametrize("name", ["models/old", "models/old/1", "old.tflite"])
def test_exports_answer_as_the_run(run, images, name):
    exported = hne.load(ARTEFACTS / name)
    for size in (1, 2):
        np.testing.assert_allclose(
            exported.predict(images, size=size).probabilities,
            run.model.probabilities(images, size),
            atol=1e-4,
        )


def test_an_export_is_served(run, images, tmp_path):
    base = shutil.copytree(ARTEFACTS / "models/old", tmp_path / "old")
    with (
        hne.serve(base, report=str) as server,
        hne.BudgetClient(server.address, "old") as client,
    ):
        answer = client.predict(images, budget_ms=60_000)
    expected = run.model.probabilities(images, answer.size)
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-4)
