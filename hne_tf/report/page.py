"""The page: a template, a style and a script, and the runs as JSON, in one file."""

import html
import importlib.resources
import json
from collections.abc import Sequence
from typing import Any


def render(title: str, runs: Sequence[dict[str, Any]]) -> str:
    """The page as HTML that needs nothing else.

    Args:
      title: heading.
      runs: see `data.describe`.
    """
    # A class may be called "</script>".
    data = json.dumps({"runs": list(runs)}, allow_nan=False).replace("<", "\\u003c")
    parts = {
        "title": html.escape(title),
        "style": _part("page.css"),
        "script": _part("page.js"),
        "data": data,
    }
    page = _part("page.html")
    # The data last: they may hold anything.
    for name in ("title", "style", "script", "data"):
        page = page.replace(f"{{{{ {name} }}}}", parts[name])
    return page


def _part(name: str) -> str:
    return (importlib.resources.files("hne_tf.report") / name).read_text(encoding="utf-8")
