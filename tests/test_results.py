"""Pages of results say what was measured: tables are those of the figures beside them."""

import importlib
import json
import pathlib

import pytest

from hne_tf.sweeps import plan, report

RESULTS = pathlib.Path(__file__).parents[1] / "results"
SWEEPS = sorted(path.with_suffix(".md") for path in RESULTS.glob("*.json"))
# Pages in words, whose tables are copied from pages that a command has written.
IN_WORDS = [RESULTS / f"{name}.md" for name in ("architectures", "objectives")]


def rows(page):
    return [line for line in page.read_text().splitlines() if line.startswith("|")]


@pytest.mark.parametrize("page", SWEEPS, ids=lambda page: page.stem)
def test_the_table_of_a_sweep_is_that_of_its_runs(page):
    summary = json.loads(page.with_suffix(".json").read_text())
    assert report.markdown(summary) in page.read_text()
    assert all(group["runs"] for group in summary["groups"])


@pytest.mark.parametrize("page", SWEEPS, ids=lambda page: page.stem)
def test_settings_have_the_names_that_they_have_now(page):
    sweep = plan.parse(importlib.import_module(f"configs.sweeps.{page.stem}").get_config())
    assert report.settings(sweep) in page.read_text()
    overrides = {name: json.loads(json.dumps(dict(each))) for name, each in sweep.groups.items()}
    for group in json.loads(page.with_suffix(".json").read_text())["groups"]:
        name = next(name for name in sorted(overrides, key=len) if group["name"].startswith(name))
        assert group["overrides"] in overrides.values(), name


@pytest.mark.parametrize("page", IN_WORDS, ids=lambda page: page.stem)
def test_tables_in_words_are_copied(page):
    written = set(RESULTS.glob("*.md")) - {*IN_WORDS, RESULTS / "README.md"}
    measured = {line for other in written for line in rows(other)}
    assert set(rows(page)) <= measured
    assert len(rows(page)) > 5


def test_the_index_names_every_page():
    index = (RESULTS / "README.md").read_text()
    missing = [page.name for page in RESULTS.glob("*.md") if f"({page.name})" not in index]
    assert missing == ["README.md"]
