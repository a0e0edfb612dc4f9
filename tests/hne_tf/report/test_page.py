import html.parser
import json
import re

import pytest

from hne_tf.report import data, page

HOSTILE = "</script><script>alert('1')</script><img src=x onerror=alert(2)>&amp;\u2028"


class Elements(html.parser.HTMLParser):
    """The elements of a page with their attributes, and the text of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = dict(attrs).get("type", tag)

    def handle_data(self, text):
        self.texts[self._open] = self.texts.get(self._open, "") + text

    def handle_endtag(self, tag):
        self._open = None


@pytest.fixture(scope="module")
def collected(made_run, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return data.collect([made_run(runs / "first"), made_run(runs / "second", seed=1)], pictures=0)


def test_the_page_holds_the_data(collected):
    elements = Elements(page.render(collected))
    assert json.loads(elements.texts["application/json"]) == collected


def test_the_page_loads_nothing(collected):
    text = page.render(collected)
    addresses = set(
        re.findall(r"(?:https?:)?//[\w.]+[^\s\"']*", re.sub("^ *//.*$", "", text, flags=re.M))
    )
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of SVG, which is not fetched"
    assert not re.search(r"@import|url\(|\bfetch\b|XMLHttpRequest|import\(", text)
    for tag, attributes in Elements(text).elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not {"src", "href", "srcset"} & attributes.keys()


def test_the_policy_allows_what_is_in_the_page_alone(collected):
    (policy,) = (
        attributes["content"]
        for _, attributes in Elements(page.render(collected)).elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_names_cannot_become_markup(collected):
    run = {**collected["runs"][0], "name": HOSTILE}
    plain, hostile = (
        Elements(page.render({"runs": [each]})) for each in (collected["runs"][0], run)
    )
    assert hostile.elements == plain.elements
    assert json.loads(hostile.texts["application/json"])["runs"][0]["name"] == HOSTILE
    assert hostile.texts["script"] == plain.texts["script"]
    assert HOSTILE in hostile.texts["title"]


def test_the_page_is_ascii_whatever_the_locale(collected):
    run = {**collected["runs"][0], "name": "Bäume"}
    page.render({"runs": [run]}).encode("ascii")


def test_a_figure_that_is_no_number_is_left_out(collected):
    run = {**collected["runs"][0], "evaluation": {"sizes": [{"nll": float("nan")}]}}
    elements = Elements(page.render({"runs": [run]}))
    read = json.loads(elements.texts["application/json"])["runs"][0]
    assert read["evaluation"]["sizes"] == [{"nll": None}]


def test_the_same_data_gives_the_same_file(collected, tmp_path):
    for name in ("a", "b"):
        page.write(tmp_path / name / "report.html", collected)
    first, second = ((tmp_path / name / "report.html").read_bytes() for name in ("a", "b"))
    assert first == second
