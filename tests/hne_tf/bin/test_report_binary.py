"""The report, also as a browser shows it; without Chromium those tests are skipped."""

import html
import re
import shutil
import subprocess

import pytest

from hne_tf.bin import evaluate, report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # Whatever the page asked the network for would fail.
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"),
)

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")


@pytest.fixture(scope="module")
def evaluated(trained_workdir):
    assert evaluate.run([f"--workdir={trained_workdir.path}", "--corruption_examples=20"]) == 0
    return trained_workdir


@pytest.fixture(scope="module")
def written(evaluated, tmp_path_factory):
    page = tmp_path_factory.mktemp("report") / "pages" / "report.html"
    assert report.run([str(evaluated.path), f"--output={page}", "--pictures=12"]) == 0
    return page


def shown(page, budget, tmp_path):
    """The page's text and its HTML once its script has run, and what it logged."""
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path}", "--dump-dom"]
    result = subprocess.run(
        [*command, f"file://{page}#budget={budget}"], capture_output=True, text=True, timeout=120
    )
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]


def text_of(dom, pattern):
    return html.unescape(re.sub("<[^>]*>", "", re.search(pattern, dom, re.DOTALL).group(1)))


@needs_chromium
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_budget_shows_which_size_answers_and_what_it_gets_right(
    evaluated, written, position, tmp_path
):
    from hne_tf.report.data import read_evaluation

    rows = read_evaluation(evaluated)["sizes"]
    row = rows[position]
    # Halfway to the next size, which does not fit yet.
    upper = rows[position + 1]["multiply_adds"] if position < 2 else 1.01 * row["multiply_adds"]
    budget = round((row["multiply_adds"] + upper) / 2)
    dom, logged = shown(written, budget, tmp_path)
    assert logged == []
    leaves = "1 leaf" if row["size"] == 1 else f"the first {row['size']} leaves"
    verdict = text_of(dom, r'id="verdict0"[^>]*>(.*?)</p>')
    assert verdict.startswith(leaves)
    assert f"{row['accuracy']:.2%} right" in verdict
    highlighted = re.findall(r'<tr class="on"><td>(\d+)</td><td>([\d.]+%)', dom)
    assert highlighted == [(str(row["size"]), f"{row['accuracy']:.2%}")]
    assert len(re.findall(r'class="node on"', dom)) == {1: 3, 2: 4, 4: 7}[row["size"]]
    assert len(re.findall(r"<img ", dom)) == 12


@needs_chromium
def test_a_budget_below_the_smallest_says_so(written, tmp_path):
    dom, logged = shown(written, 0, tmp_path)
    assert logged == []
    assert text_of(dom, r'id="verdict0"[^>]*>(.*?)</p>').startswith("Nothing fits")


def test_what_cannot_be_reported_is_refused(assert_refused, evaluated, tmp_path):
    assert_refused(report, [], "one workdir or more, got none")
    assert_refused(report, [str(evaluated.path)] * 2, "must differ")
    assert_refused(report, [str(tmp_path)], "evaluated first")
    missing = f"--models={tmp_path}"
    assert_refused(report, [str(evaluated.path), missing], "hne_manifest.json")
    assert list(tmp_path.iterdir()) == []
