import numpy as np
import pytest

from hne_tf import cost, evaluation, tables, trained


@pytest.fixture(scope="module")
def run(trained_workdir):
    return trained.restore(trained_workdir)


@pytest.fixture(scope="module")
def measured(run):
    return evaluation.evaluate(run, "test", batch_size=100)


def test_figures_are_those_of_numpy_on_all_leaf_logits(run, measured):
    batches = list(run.data_set.evaluation_batches("test", 360))
    (images, labels) = batches[0]
    labels = labels.numpy()
    leaf_logits = run.model(images, training=False).numpy()
    for row in measured["sizes"]:
        logits = leaf_logits[:, : row["size"]].mean(axis=1)
        log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        hits = logits.argmax(axis=1) == labels
        assert row["accuracy"] == pytest.approx(hits.mean())
        nll = -log_probabilities[np.arange(len(labels)), labels].mean()
        assert row["nll"] == pytest.approx(nll, rel=1e-4)
    leaf_hits = (leaf_logits.argmax(axis=2) == labels[:, None]).mean(axis=0)
    np.testing.assert_allclose(measured["leaf_accuracy"], leaf_hits, rtol=1e-5)
    assert measured["mean_leaf_accuracy"] == pytest.approx(leaf_hits.mean())


def test_costs_stand_beside_the_figures(run, measured):
    costs = cost.per_size(run.model, [1, 2, 4])
    for row in measured["sizes"]:
        assert row["multiply_adds"] == costs[row["size"]].multiply_adds
        assert row["parameters"] == costs[row["size"]].parameters


def test_any_sizes_can_be_asked_for(run):
    measured = evaluation.evaluate(run, "validation", sizes=[3])
    assert [row["size"] for row in measured["sizes"]] == [3]
    assert measured["examples"] == 180


def test_the_table_has_a_row_per_size_in_aligned_columns(measured):
    lines = tables.markdown(measured).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    assert len(rows) == 2 + 3
    full = measured["sizes"][-1]
    assert f"{full['accuracy']:.2%}" in rows[-1]
    assert f"{full['multiply_adds']:,}" in rows[-1]


def test_the_picture_is_the_same_for_the_same_figures(measured, tmp_path):
    for name in ("one", "two"):
        tables.plot(measured, "digits", [tmp_path / f"{name}.svg", tmp_path / f"{name}.png"])
    one = (tmp_path / "one.png").read_bytes()
    assert one == (tmp_path / "two.png").read_bytes()
    assert one.startswith(b"\x89PNG")
    assert "n = 4" not in (tmp_path / "one.svg").read_text()[:10]
    assert (tmp_path / "one.svg").read_text().lstrip().startswith("<?xml")


def test_the_picture_shows_other_figures(measured, tmp_path):
    other = {**measured, "sizes": [{**row, "accuracy": 0.1} for row in measured["sizes"]]}
    tables.plot(measured, "digits", [tmp_path / "one.png"])
    tables.plot(other, "digits", [tmp_path / "two.png"])
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()
