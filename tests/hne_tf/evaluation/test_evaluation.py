import itertools

import numpy as np
import pytest

from hne_tf.evaluation import cost, early_stopping, evaluation, plots, tables
from hne_tf.exported.uncertainty import stopping
from hne_tf.training import trained


@pytest.fixture(scope="module")
def run(trained_workdir):
    return trained.restore(trained_workdir)


@pytest.fixture(scope="module")
def measured(run):
    return run.evaluate("test")


def test_figures_are_those_of_numpy_on_all_leaf_logits(run, measured):
    batches = list(run.data_set.evaluation_batches("test", 360))
    (images, labels) = batches[0]
    labels = labels.numpy()
    leaf_logits = run.model(images, training=False).numpy()
    leaf_hits = (leaf_logits.argmax(axis=2) == labels[:, None]).mean(axis=0)
    for row in measured["sizes"]:
        logits = leaf_logits[:, : row["size"]].mean(axis=1)
        log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        hits = logits.argmax(axis=1) == labels
        assert row["accuracy"] == pytest.approx(hits.mean())
        nll = -log_probabilities[np.arange(len(labels)), labels].mean()
        assert row["nll"] == pytest.approx(nll, rel=1e-4)
        members = leaf_hits[: row["size"]].mean()
        assert row["mean_member_accuracy"] == pytest.approx(members)
        assert row["gain"] == pytest.approx(hits.mean() - members, abs=1e-6)
        diagram = row["reliability"]
        assert sum(diagram["count"]) == len(labels)
        right = [
            n * share for n, share in zip(diagram["count"], diagram["accuracy"], strict=True) if n
        ]
        assert sum(right) == pytest.approx(hits.sum(), abs=1e-3)
    np.testing.assert_allclose(measured["leaf_accuracy"], leaf_hits, rtol=1e-5)
    assert measured["mean_leaf_accuracy"] == pytest.approx(leaf_hits.mean())


def test_costs_stand_beside_the_figures(run, measured):
    costs = cost.per_size(run.model, [1, 2, 4])
    for row in measured["sizes"]:
        assert row["multiply_adds"] == costs[row["size"]].multiply_adds
        assert row["parameters"] == costs[row["size"]].parameters


def numpy_answers(run, split):
    """Confidences and hits of all sizes from leaf logits in one batch."""
    ((images, labels),) = run.data_set.evaluation_batches(split, 1000)
    leaf_logits = run.model(images, training=False).numpy()
    columns, classes = [], []
    for size in (1, 2, 3, 4):
        exponents = np.exp(leaf_logits[:, :size].mean(axis=1))
        probabilities = exponents / exponents.sum(axis=1, keepdims=True)
        classes.append(probabilities.argmax(axis=1))
        columns.append((probabilities.max(axis=1), classes[-1] == labels.numpy()))
    confidences, correct = zip(*columns, strict=True)
    scores = {"confidence": np.stack(confidences, axis=1)}
    votes = leaf_logits.argmax(axis=-1)
    agreements = [
        [np.mean([*(votes[row, : n + 1] == best), 0.0]) for n, best in enumerate(answers)]
        for row, answers in enumerate(np.stack(classes, axis=1))
    ]
    scores["agreement"] = np.array(agreements)
    return early_stopping.Answers(scores, np.stack(correct, axis=1))


def test_answers_are_those_of_numpy_on_all_leaf_logits(run):
    answers, expected = (
        evaluation.answers(run.model, run.batches("test"), batch_size=100),
        numpy_answers(run, "test"),
    )
    assert list(answers.scores) == list(stopping.RULES)
    for rule, wanted in expected.scores.items():
        np.testing.assert_allclose(answers.scores[rule], wanted, rtol=1e-4, err_msg=rule)
    assert answers.correct.dtype == bool
    np.testing.assert_array_equal(answers.correct, expected.correct)


def test_early_stopping_is_fitted_on_validation_and_judged_on_test(run, measured):
    stopping = measured["early_stopping"]
    assert (stopping["split"], stopping["examples"]) == ("validation", 180)
    costs = [each.multiply_adds for each in cost.per_size(run.model, [1, 2, 3, 4]).values()]
    validation = evaluation.answers(run.model, run.batches("validation"), batch_size=100)
    test = numpy_answers(run, "test")
    first, last = stopping["curve"][0], stopping["curve"][-1]
    assert first["multiply_adds"] == costs[0]
    assert first["accuracy"] == pytest.approx(measured["sizes"][0]["accuracy"])
    assert costs[0] < last["target_multiply_adds"] < costs[-1]
    for row in stopping["curve"]:
        # Here and below, images whose confidence is a threshold, at most one for each, may
        # fall to the other side: sums are not rounded alike twice.
        sizes = early_stopping.apply(validation.scores["confidence"], row["thresholds"])
        others = len(row["thresholds"]) * (costs[-1] - costs[0]) / len(sizes)
        mean_cost = np.mean([costs[size - 1] for size in sizes])
        assert mean_cost <= row["target_multiply_adds"] + others
        sizes = early_stopping.apply(test.scores["confidence"], row["thresholds"])
        assert row["mean_size"] == pytest.approx(sizes.mean(), abs=0.03)
        hits = test.correct[np.arange(len(sizes)), sizes - 1]
        assert row["accuracy"] == pytest.approx(hits.mean(), abs=0.01)


def test_every_stopping_rule_has_its_curve(run, measured):
    by_rule = measured["early_stopping_by_rule"]
    assert list(by_rule) == list(stopping.RULES)
    assert by_rule["confidence"] == measured["early_stopping"]
    validation = evaluation.answers(run.model, run.batches("validation"), batch_size=100)
    costs = [each.multiply_adds for each in cost.per_size(run.model, [1, 2, 3, 4]).values()]
    for rule, found in by_rule.items():
        assert (found["rule"], found["split"]) == (rule, "validation")
        assert found["curve"]
        for row in found["curve"]:
            target = row["target_multiply_adds"]
            assert row["thresholds"] == pytest.approx(
                early_stopping.fit(validation.scores[rule], costs, target), rel=1e-3
            )
    # A single leaf cannot disagree with itself.
    assert by_rule["significance"]["curve"][0]["target_multiply_adds"] > costs[0]


def test_thresholds_are_not_judged_on_what_they_were_fitted_on(run):
    measured = run.evaluate("validation")
    assert measured["early_stopping"] is None
    sizes, classes = blocks_of_rows(tables.markdown(measured))
    assert (len(sizes), len(classes)) == (2 + 3, 2 + 10)


def test_any_sizes_can_be_asked_for(run):
    measured = run.evaluate("validation", sizes=[3])
    assert [row["size"] for row in measured["sizes"]] == [3]
    assert measured["examples"] == 180


def test_the_tables_have_a_row_per_size_and_per_target_in_aligned_columns(measured):
    sizes, stopped, rules, calibrated, classes = blocks_of_rows(tables.markdown(measured))
    for rows in (sizes, stopped, rules, calibrated, classes):
        assert len({len(row) for row in rows}) == 1
    assert len(sizes) == 2 + 3
    full = measured["sizes"][-1]
    assert f"{full['accuracy']:.2%}" in sizes[-1]
    assert f"{full['multiply_adds']:,}" in sizes[-1]
    curve = measured["early_stopping"]["curve"]
    assert len(stopped) == len(rules) == 2 + len(curve)
    for key in ("multiply_adds", "target_multiply_adds"):
        assert f" {curve[3][key]:,} " in stopped[2 + 3]
    for key in ("accuracy", "anytime_accuracy"):
        assert f" {curve[3][key]:.2%} " in stopped[2 + 3]
    assert rules[0].split()[1::2] == ["target_multiply_adds", *stopping.RULES]
    # The first target is the cost of one leaf, which gives no significance.
    found = [row.split()[1:-1:2] for row in rules[2:]]
    assert found[0][-1] == "-"
    margins = measured["early_stopping_by_rule"]["margin"]["curve"]
    for (target, *accuracies), row in zip(found, margins, strict=True):
        assert (target, accuracies[1]) == (
            f"{row['target_multiply_adds']:,}",
            f"{row['accuracy']:.2%}",
        )


def test_the_table_of_calibration_has_a_row_per_size(measured):
    *_, rows, _ = blocks_of_rows(tables.markdown(measured))
    calibration = measured["calibration"]
    assert len(rows) == 2 + len(calibration["sizes"])
    for text, row in zip(rows[2:], calibration["sizes"], strict=True):
        before, after = row["before"], row["after"]
        assert f" {row['size']} | {row['temperature']:11.3f} " in text
        assert f" {before['ece']:.4f} -> {after['ece']:.4f} " in text
        lac = row["sets"]["lac"]
        assert f" {lac['coverage']:.2%} of {lac['size']:.2f} " in text


def test_calibration_is_fitted_on_validation_and_judged_on_test(run, measured):
    calibration = measured["calibration"]
    assert (calibration["split"], calibration["examples"]) == ("validation", 180)
    assert len(calibration["temperatures"]) == 4
    for row, size in zip(calibration["sizes"], measured["sizes"], strict=True):
        assert row["size"] == size["size"]
        for figure in ("ece", "nll", "brier"):
            assert row["before"][figure] == pytest.approx(size[figure], rel=1e-3)
    assert run.evaluate("test", coverage=0.6)["calibration"]["coverage"] == 0.6


def test_every_class_has_its_row(run, measured):
    ((images, labels),) = run.data_set.evaluation_batches("test", 360)
    labels = labels.numpy()
    answers = run.model(images, training=False).numpy().mean(axis=1).argmax(axis=1)
    assert [row["name"] for row in measured["classes"]] == [str(digit) for digit in range(10)]
    for digit, row in enumerate(measured["classes"]):
        assert row["examples"] == (labels == digit).sum()
        assert row["accuracy"]["4"] == pytest.approx((answers[labels == digit] == digit).mean())
        named = labels[answers == digit] == digit
        precision = pytest.approx(named.mean()) if len(named) else None
        assert row["precision"]["4"] == precision
    of_each = [row["accuracy"]["4"] for row in measured["classes"]]
    assert measured["sizes"][-1]["balanced_accuracy"] == pytest.approx(np.mean(of_each))
    *_, table = blocks_of_rows(tables.markdown(measured))
    header = [cell.strip() for cell in table[0].split("|")]
    assert header == ["", "class", "examples", "1", "2", "4", "precision", ""]
    worst = min(measured["classes"], key=lambda row: row["accuracy"]["4"])
    assert f" {worst['accuracy']['4']:.2%} " in table[2 + int(worst["name"])]


def test_of_many_classes_the_worst_are_shown(measured):
    classes = [
        {
            "name": f"a|{label:02}",
            "examples": 0 if label == 5 else 9,
            "accuracy": dict.fromkeys("124", None if label == 5 else label / 50),
            "precision": dict.fromkeys("124", None),
        }
        for label in reversed(range(40))
    ]
    text = tables.markdown({**measured, "classes": classes})
    *_, table = blocks_of_rows(text)
    shown = [label for label in range(21) if label != 5]
    assert [line.split()[1] for line in table[2:]] == [f"a\\|{n:02}" for n in reversed(shown)]
    assert table[-1].split()[-2] == "-"
    assert "20 of 40 classes, those of the lowest accuracy of size 4: " in text


def blocks_of_rows(text):
    """The tables in Markdown, each a list of lines."""
    lines = itertools.groupby(text.splitlines(), key=lambda line: line.startswith("|"))
    return [list(group) for is_row, group in lines if is_row]


def test_columns_of_words_are_aligned_to_the_left():
    table = tables.aligned(["name", "n"], [["a", "1,000"], ["long name", "2"]], words={"name"})
    assert table.splitlines() == [
        "| name      |     n |",
        "| :-------- | ----: |",
        "| a         | 1,000 |",
        "| long name |     2 |",
    ]


def test_the_picture_is_the_same_for_the_same_figures(measured, tmp_path):
    for name in ("one", "two"):
        plots.plot(measured, "digits", [tmp_path / f"{name}.svg", tmp_path / f"{name}.png"])
    one = (tmp_path / "one.png").read_bytes()
    assert one == (tmp_path / "two.png").read_bytes()
    assert one.startswith(b"\x89PNG")
    assert "n = 4" not in (tmp_path / "one.svg").read_text()[:10]
    assert (tmp_path / "one.svg").read_text().lstrip().startswith("<?xml")


def test_the_picture_shows_other_figures(measured, tmp_path):
    pictures = [measured]
    pictures.append({**measured, "sizes": [{**row, "accuracy": 0.1} for row in measured["sizes"]]})
    pictures.append({**measured, "early_stopping": None})
    for index, picture in enumerate(pictures):
        plots.plot(picture, "digits", [tmp_path / f"{index}.png"])
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 3
