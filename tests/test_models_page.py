"""The page of trained models has a card for each, whose figures are those of its weights."""

import json
import pathlib
import re

import pytest

from hne_tf import pretrained

CHECKOUT = pathlib.Path(__file__).parents[1]


def test_the_page_names_every_model():
    header = next(
        line
        for line in (CHECKOUT / "docs/models.md").read_text().splitlines()
        if line.startswith("| | ")
    )
    assert sorted(re.findall(r"\w+", header)) == pretrained.names()


@pytest.mark.parametrize("name", pretrained.names())
def test_a_card_has_the_accuracy_of_its_weights(name):
    assert f"`results/{name}.md`" in (CHECKOUT / "docs/models.md").read_text()
    card = (CHECKOUT / f"results/{name}.md").read_text()
    weights = CHECKOUT / "hne_tf/pretrained" / f"{name}.json"
    for size, accuracy in json.loads(weights.read_text())["accuracy"]["by_size"].items():
        assert re.search(rf"^\| +{size} \| +{100 * accuracy:.2f}% \|", card, re.MULTILINE), size
    assert "Calibration, before -> after" in card
    assert "multiply_adds" in card
    assert "Trained by `hne-train` with these overrides" in card


def test_the_shelf_stays_small():
    size = sum(path.stat().st_size for path in (CHECKOUT / "hne_tf/pretrained").glob("*.npz"))
    assert size <= 8 * 2**20
