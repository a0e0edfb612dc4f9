"""The page: figures, drawings and the code that moves them, in one file."""

import base64
import hashlib
import html
import json
import math
import pathlib
import string
from typing import Any

from hne_tf.files import write_text

_FOLDER = pathlib.Path(__file__).parent
_SCRIPTS = ("elements.js", "charts.js", "tree.js", "tables.js", "report.js")


def write(path: pathlib.Path, data: dict[str, Any]) -> None:
    """Writes the page of a report; folders on the way are made.

    Args:
      path: the page.
      data: see `data.collect`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(data))


def render(data: dict[str, Any]) -> str:
    """The page's HTML.

    Names and figures come in as JSON, which the scripts put in place as text, never
    as HTML. The policy in the page lets the browser run these scripts alone and load
    nothing at all, so that the file works, and looks the same, wherever it lies.

    Args:
      data: see `data.collect`.
    """
    style = (_FOLDER / "report.css").read_text(encoding="utf-8")
    script = "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    template = string.Template((_FOLDER / "template.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=_text(", ".join(run["name"] for run in data["runs"])),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=_json(data),
    )


def _text(text: str) -> str:
    """Text in HTML, in ASCII like the rest of the page, which no encoding changes."""
    return html.escape(text).encode("ascii", "xmlcharrefreplace").decode()


def _json(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element."""
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    """JSON has no NaN, the figure of a run that diverged."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hash(text: str) -> str:
    """How a content security policy names an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
