"""Networks with exits from settings to a published version: train, evaluate, export, stop early."""

import numpy as np
import pytest
from scipy import special

from hne_tf.evaluation import cost, tables
from hne_tf.exits import Exits
from hne_tf.export import exporter
from hne_tf.exported.model import load
from hne_tf.training import trained
from hne_tf.training.loop import train
from hne_tf.training.workdir import Workdir

pytestmark = pytest.mark.slow

SETTINGS = {
    "multi_exit": {"model__architecture": "multi_exit"},
    "msdnet": {
        "model__architecture": "msdnet",
        "model__msdnet__units": (1, 1, 1),
        "model__msdnet__growth": 2,
        "model__msdnet__scale_factors": (1, 2),
        "model__msdnet__bottlenecks": (1, 2),
        "model__msdnet__head_width": 8,
    },
}


@pytest.fixture(scope="module", params=SETTINGS)
def run(request, tiny_config, tmp_path_factory):
    """A short run with exit distillation."""
    config = tiny_config(
        **SETTINGS[request.param],
        objective__average="last",
        data__train_examples=64,
        training__epochs=2.0,
    )
    workdir = Workdir(tmp_path_factory.mktemp("runs") / request.param)
    train(config, workdir, report=lambda line: None)
    return trained.restore(workdir)


@pytest.fixture(scope="module")
def measured(run):
    return run.evaluate("test")


@pytest.fixture(scope="module")
def version(run, tmp_path_factory):
    base = tmp_path_factory.mktemp("models") / "tiny"
    return exporter.export(
        run.model,
        base,
        test=run.batches("test"),
        validation=run.batches("validation"),
        record=run.record,
        report=lambda line: None,
    )


@pytest.fixture(scope="module")
def examples(run):
    """Test images with their labels and the live model's logits of every exit."""
    ((images, labels),) = run.data_set.evaluation_batches("test", 1000)
    logits = run.model(images, training=False).numpy()
    return images.numpy(), labels.numpy(), logits


def test_exits_are_measured_alone_and_together(run, measured, examples):
    _, labels, logits = examples
    assert run.model.tree == Exits(3)
    assert measured["sizes_by_average"].keys() == {"last", "logits"}
    assert measured["sizes"] == measured["sizes_by_average"]["last"]
    for average, rows in measured["sizes_by_average"].items():
        assert [row["size"] for row in rows] == [1, 2, 3]
        costs = cost.per_size(run.model, [1, 2, 3], average)
        for row in rows:
            size = row["size"]
            answer = logits[:, size - 1] if average == "last" else logits[:, :size].mean(axis=1)
            accuracy = (answer.argmax(axis=-1) == labels).mean()
            assert row["accuracy"] == pytest.approx(accuracy, abs=1e-6)
            log_likelihood = special.log_softmax(answer, axis=-1)[np.arange(len(labels)), labels]
            assert row["nll"] == pytest.approx(-log_likelihood.mean(), rel=1e-4)
            assert row["multiply_adds"] == costs[size].multiply_adds
    alone, together = (measured["sizes_by_average"][each][2] for each in ("last", "logits"))
    assert alone["multiply_adds"] < together["multiply_adds"]


def test_both_ways_to_answer_are_in_the_table(measured):
    text = tables.markdown(measured)
    alone, together = text.split("Running ensemble of the exits")
    for average, part in (("last", alone), ("logits", together)):
        for row in measured["sizes_by_average"][average]:
            assert f" {row['nll']:.4f} " in part
            assert f" {row['multiply_adds']:,} " in part


def test_budgets_are_met_by_stopping_at_an_exit(run, measured):
    # Exits on the way are computed and paid for.
    walked = [each.multiply_adds for each in cost.per_size_walked(run.model).values()]
    curve = measured["early_stopping"]["curve"]
    assert curve[0]["target_multiply_adds"] == walked[0]
    for row in curve:
        assert len(row["thresholds"]) == 2
        assert walked[0] <= row["multiply_adds"] <= walked[-1]


def test_a_version_has_a_signature_per_exit_and_tells_its_cost(run, version):
    manifest = load(version).manifest
    assert (manifest.exits, manifest.branching) == (3, None)
    assert (manifest.sizes, manifest.average) == ((1, 2, 3), "last")
    costs = cost.per_size(run.model, [1, 2, 3], "last")
    for size in (1, 2, 3):
        assert manifest.cost[size] == costs[size]


def test_a_published_session_stops_at_any_exit(version, examples):
    images, _, logits = examples
    for size, probabilities in load(version).session(images[:4]):
        expected = special.softmax(logits[:4, size - 1], axis=-1)
        np.testing.assert_allclose(probabilities, expected, atol=1e-4)
    assert size == 3
