"""Groups that an earlier page has the figures of."""

import json

import pytest

from hne_tf.errors import InputError
from hne_tf.sweeps import earlier, plan, report
from hne_tf.training.config import default


def described(seeds=(0, 1), epochs=3.0, split="test"):
    base = default()
    base.training.epochs = epochs
    base.training.deterministic = True
    groups = [(name, {"objective.name": name}) for name in ("independent", "subtree")]
    return plan.parse(
        plan.describe(title="Two", base=base, groups=groups, seeds=seeds, split=split)
    )


def evaluations(accuracy):
    row = {"size": 1, "accuracy": accuracy, "disagreement": 0.0, "multiply_adds": 10}
    one = {"sizes": [row], "mean_leaf_accuracy": accuracy}
    return {"test": one, "train": one}


@pytest.fixture
def figures(tmp_path):
    """Figures of one of two groups, with both seeds."""
    found = {("independent", seed): evaluations(0.5 + seed / 10) for seed in (0, 1)}
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(report.summarise(described(), found)))
    return path


def test_groups_with_all_their_runs_are_taken_as_they_are(figures):
    known = earlier.measured(figures, described())
    assert list(known) == ["independent"]
    found = {("subtree", seed): evaluations(0.4) for seed in (0, 1)}
    first, second = report.summarise(described(), found, known)["groups"]
    assert first == json.loads(figures.read_text())["groups"][0]
    assert second["mean"]["accuracy"] == {"1": 0.4}
    assert "figures of" in earlier.described(known, figures)
    assert "independent" in earlier.described(known, figures)


def test_ways_in_which_exits_answer_are_taken_together(figures):
    content = json.loads(figures.read_text())
    entry = content["groups"][0]
    ways = [{**entry, "name": f"independent, {way}"} for way in ("alone", "together")]
    figures.write_text(json.dumps({**content, "groups": ways}))
    assert earlier.measured(figures, described()) == {"independent": ways}


@pytest.mark.parametrize(
    "other", [{"seeds": (0, 1, 2)}, {"seeds": (0,)}, {"epochs": 4.0}], ids=["more", "fewer", "base"]
)
def test_other_runs_are_not_taken(figures, other):
    with pytest.raises(InputError, match="--figures must have a group of the sweep"):
        earlier.measured(figures, described(**other))


def test_figures_of_another_split_are_refused(figures):
    with pytest.raises(InputError, match="must be of the validation split, got the test split"):
        earlier.measured(figures, described(split="validation"))


@pytest.mark.parametrize("content", ["[]", "{}", '{"split": "test", "groups": [{}]}'])
def test_what_is_no_figures_is_refused(tmp_path, content):
    path = tmp_path / "figures.json"
    path.write_text(content)
    with pytest.raises(InputError, match="must be the figures of a sweep"):
        earlier.measured(path, described())
