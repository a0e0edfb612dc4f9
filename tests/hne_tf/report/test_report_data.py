import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from hne_tf import cost, evaluation, trained
from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.export.manifest import MANIFEST
from hne_tf.image_spec import ImageSpec
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers import DeployLayers
from hne_tf.models.resnet import ResNet
from hne_tf.report import data
from hne_tf.workdir import Workdir

LATENCY = {"ms": {"1": 1.5, "2": 2.5}, "threads": 1, "hardware": "abacus"}


@pytest.fixture(scope="module")
def run(trained_workdir):
    return trained.restore(trained_workdir)


@pytest.fixture(scope="module")
def measured(run):
    return evaluation.evaluate(run, "test")


@pytest.fixture(scope="module")
def description(run, measured):
    return data.describe("tiny", run, measured, LATENCY, 30)


def test_figures_are_those_of_the_evaluation(description, measured):
    for shown, row in zip(description["sizes"], measured["sizes"], strict=True):
        figures = {key: value for key, value in shown.items() if key != "latency_ms"}
        assert figures == {key: row[key] for key in figures}
        assert {"accuracy", "gain", "variance", "reliability"} <= figures.keys()
        assert shown["latency_ms"] == LATENCY["ms"].get(str(row["size"]))
    assert description["examples"] == 360
    assert description["latency"] == {"threads": 1, "hardware": "abacus"}
    assert "model.branching = (1, 2, 2)" in description["settings"]
    json.dumps(description, allow_nan=False)


def test_the_tree_is_drawn_with_the_cost_of_each_prefix(run, description):
    tree = description["tree"]
    assert (tree["blocks"], tree["leaves"], len(tree["nodes"])) == (3, 4, 7)
    assert [node["row"] for node in tree["nodes"]] == [1.5, 0.5, 2.5, 0, 1, 2, 3]
    assert [node["parent"] for node in tree["nodes"]] == [None, 0, 0, 1, 1, 2, 2]
    assert [node["leaf"] for node in tree["nodes"]] == [False] * 3 + [True] * 4
    for size, costs in cost.per_size(run.model, (1, 2, 3, 4)).items():
        active = [node["multiply_adds"] for node in tree["nodes"] if node["size"] <= size]
        assert sum(active) == costs.multiply_adds


def test_exits_are_drawn_as_a_chain():
    images = ImageSpec((8, 8, 3), ("ant", "bee"), (0.0,) * 3, (1.0,) * 3)
    resnet = ResNet("basic", (2, 2), (1, 1), (1, 2), stem_width=2)
    tree = data.tree_drawing(TreeEnsemble(resnet, Exits(2), DeployLayers(), images))
    assert [(node["block"], node["row"], node["parent"]) for node in tree["nodes"]] == [
        (0, 0.5, None),
        (1, 0.0, 0),
        (1, 1.0, 0),
        (2, 1.0, 2),
    ]
    assert [node["size"] for node in tree["nodes"]] == [1, 1, 2, 2]


def test_pictures_come_with_the_answers_of_every_size(run, description):
    ((images, labels),) = run.data_set.evaluation_batches("test", 360).as_numpy_iterator()
    leaf_logits = run.model(images, training=False).numpy()
    gallery = description["gallery"]
    assert len(gallery["images"]) == 30
    seen = set()
    for shown in gallery["images"]:
        pixels = np.asarray(
            Image.open(io.BytesIO(base64.b64decode(shown["png"].partition(",")[2])))
        )
        index = int(np.flatnonzero((images[..., 0] == pixels).all(axis=(1, 2)))[0])
        seen.add(index)
        assert shown["label"] == labels[index]
        for size, answer in shown["answers"].items():
            logits = leaf_logits[index, : int(size)].mean(axis=0)
            probabilities = np.exp(logits) / np.exp(logits).sum()
            assert answer["label"] == logits.argmax()
            assert answer["confidence"] == pytest.approx(probabilities.max(), abs=1e-3)
    assert len(seen) == 30
    flips = [
        [shown["answers"][size]["label"] == shown["label"] for size in shown["answers"]]
        for shown in gallery["images"]
    ]
    assert any(len(set(row)) > 1 for row in flips[:15])


def test_latencies_go_by_the_settings_of_the_run(tmp_path):
    def row(size, batch_size, p50):
        signature = f"ensemble_{size}"
        return {"signature": signature, "batch_size": batch_size, "threads": 2, "p50_ms": p50}

    latency = {
        "hardware": {"processor": "abacus"},
        "measurements": [row(1, 1, 0.5), row(4, 1, 2.0), row(4, 8, 9.0)],
    }
    manifest = {"format": 1, "sizes": [1, 4], "config_digest": "abc", "latency": latency}
    (tmp_path / MANIFEST).parent.mkdir()
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert data.latencies([tmp_path]) == {
        "abc": {"ms": {"1": 0.5, "4": 2.0}, "threads": 2, "hardware": "abacus"}
    }


def test_older_and_damaged_evaluations_are_refused(tmp_path):
    workdir = Workdir(tmp_path)
    with pytest.raises(InputError, match=r"evaluated first \(hne-evaluate --workdir="):
        data.read_evaluation(workdir)
    workdir.evaluation_path("test").write_text("{")
    with pytest.raises(InputError, match="must be readable JSON"):
        data.read_evaluation(workdir)
    workdir.evaluation_path("test").write_text('{"sizes": [{"size": 1, "accuracy": 1.0}]}')
    with pytest.raises(InputError, match=r"got none of nll, .*, reliability"):
        data.read_evaluation(workdir)
