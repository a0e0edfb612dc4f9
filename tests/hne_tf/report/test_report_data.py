import dataclasses
import json

import pytest

from hne_tf.errors import InputError
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.measurements import MeasuredLatency, Measurement
from hne_tf.exported.model import load
from hne_tf.exported.versions import MANIFEST
from hne_tf.files import write_json
from hne_tf.report import data
from hne_tf.training import config, trained
from hne_tf.training.workdir import Workdir
from hne_tf.tree import Tree


@pytest.fixture
def run(made_run, tmp_path):
    return made_run(tmp_path / "runs" / "digits")


@pytest.fixture
def export(tmp_path):
    """Makes a version's manifest, as an export of a run has it."""

    def make(workdir, name="digits", version=1, step=30, **changes):
        rows = tuple(
            Measurement(f"ensemble_{size}", batch, 100, size * batch / 2, size * batch, 99.0, 2)
            for size in (1, 2, 4)
            for batch in (8, 1)
        )
        manifest = Manifest.of_tree(
            Tree((1, 2, 2)),
            name,
            ("a", "b"),
            (8, 8, 1),
            latency=MeasuredLatency({"processor": "Abacus"}, rows),
            record={"step": step, "config_digest": config.digest(workdir.read_config())},
        )
        folder = tmp_path / "models" / name / str(version)
        (folder / MANIFEST).parent.mkdir(parents=True)
        (folder / MANIFEST).write_text(dataclasses.replace(manifest, **changes).to_text())
        (folder / "saved_model.pb").touch()
        return load(folder)

    return make


def test_figures_are_those_of_the_evaluation(run):
    (collected,) = data.collect([run], pictures=0)["runs"]
    assert collected["evaluation"] == json.loads(run.evaluation_path("test").read_text())
    assert collected["name"] == "digits"
    assert (collected["kind"], collected["shape"], collected["leaves"]) == ("tree", [1, 2, 2], 4)
    assert collected["tree"]["active"].keys() == {"1", "2", "4"}
    assert ["model.resnet.widths", "(4, 8, 8)"] in collected["settings"]
    assert collected["latency"] is None
    assert collected["gallery"] is None


def test_a_network_with_exits_is_told_from_a_tree(made_run, tmp_path):
    run = made_run(tmp_path / "exits", model__architecture="multi_exit", objective__average="last")
    (collected,) = data.collect([run], pictures=0)["runs"]
    assert (collected["kind"], collected["shape"], collected["average"]) == ("exits", [3], "last")


def test_pictures_and_answers_come_of_the_trained_run(trained_workdir, run):
    # The same settings and step, so that one trained run does.
    write_json(
        trained_workdir.evaluation_path("test"),
        trained.restore(trained_workdir).evaluate("test"),
    )
    (collected,) = data.collect([trained_workdir], pictures=7)["runs"]
    assert len(collected["gallery"]["images"]) == 7
    assert len(collected["gallery"]["images"][0]["answers"]) == 3


def test_latency_is_that_of_one_image_in_the_export(run, made_run, export, tmp_path):
    other = made_run(tmp_path / "runs" / "other", seed=1)
    version = export(run, version=3)
    measured, missing = data.collect([run, other], [version], pictures=0)["runs"]
    assert missing["latency"] is None
    assert measured["latency"] == {
        "model": "digits/3",
        "hardware": {"processor": "Abacus"},
        "threads": 2,
        "runs": 100,
        "p50_ms": {"1": 0.5, "2": 1.0, "4": 2.0},
        "p95_ms": {"1": 1.0, "2": 2.0, "4": 4.0},
    }


def test_a_model_of_no_run_is_refused(run, made_run, export, tmp_path):
    stranger = export(made_run(tmp_path / "stranger", seed=1), "stranger")
    earlier = export(run, "earlier", step=10)
    for model in (stranger, earlier):
        with pytest.raises(InputError, match=f"as they were evaluated, got '{model.path}'"):
            data.collect([run], [model], pictures=0)


def test_two_models_of_a_run_are_refused(run, export):
    models = [export(run, version=version) for version in (1, 2)]
    with pytest.raises(InputError, match=r"one model, got digits/1 and .*/2'"):
        data.collect([run], models, pictures=0)


@pytest.mark.parametrize("latency", [None, MeasuredLatency({}, ())])
def test_a_model_without_latencies_is_refused(run, export, latency):
    with pytest.raises(InputError, match="hold the latency of ensemble size 1 at batch size 1"):
        data.collect([run], [export(run, latency=latency)], pictures=0)


def test_runs_in_folders_of_one_name_are_called_by_their_paths(run, made_run, tmp_path):
    runs = [run, *(made_run(tmp_path / "more" / name, seed=1) for name in ("digits", "large"))]
    names = [collected["name"] for collected in data.collect(runs, pictures=0)["runs"]]
    assert names == [str(run.path), str(runs[1].path), "large"]


def test_each_run_is_taken_once(run):
    with pytest.raises(InputError, match=r"each once, got .*digits, .*digits"):
        data.collect([run, Workdir(run.path / ".." / "digits")], pictures=0)
    with pytest.raises(InputError, match="got none"):
        data.collect([], pictures=0)


def test_a_run_that_is_not_evaluated_is_refused(run):
    run.evaluation_path("test").unlink()
    with pytest.raises(InputError, match="evaluated first, hne-evaluate --workdir="):
        data.collect([run], pictures=0)


def test_an_evaluation_of_an_older_form_is_refused(made_run, tmp_path):
    def older(evaluation):
        for row in evaluation["sizes"]:
            del row["reliability"]

    run = made_run(tmp_path / "older", older)
    with pytest.raises(InputError, match=r"evaluate again .* without reliability"):
        data.collect([run], pictures=0)


def test_a_damaged_evaluation_is_refused(run):
    run.evaluation_path("test").write_text("{")
    with pytest.raises(InputError, match=r"evaluation\.json must be readable JSON"):
        data.collect([run], pictures=0)


def test_a_run_that_has_gone_on_is_refused(trained_workdir, made_run, tmp_path):
    def outdated(evaluation):
        evaluation["step"] = 20

    run = made_run(tmp_path / "resumed", outdated)
    run.checkpoints.rmdir()
    run.checkpoints.symlink_to(trained_workdir.checkpoints)
    with pytest.raises(InputError, match="of step 20, its newest weights of step 30"):
        data.collect([run], pictures=1)
