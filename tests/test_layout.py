"""Rooms stand in one order, stay small, and give each name one meaning."""

import ast
import collections
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "hne_tf"
# A room, or a module at the top, imports only those to its left.
ORDER = (
    *("errors", "files", "tree", "exits", "image_spec", "hardware", "import_path"),
    *("exported", "data", "models", "objectives", "metrics", "evaluation", "training"),
    *(
        "export",
        "compression",
        "pretrained",
        "sweeps",
        "report",
        "client",
        "server",
        "gateway",
        "bin",
    ),
    *("serving", "benchmarks"),
)
MOST_AT_THE_TOP = 8
MOST_IN_A_ROOM = 14


def sources():
    for folder in (PACKAGE, ROOT / "serving", ROOT / "benchmarks"):
        yield from sorted(folder.rglob("*.py"))


def room_of(parts):
    """The room of a module, by the parts of its name; None for the package itself."""
    if parts[0] != "hne_tf":
        return parts[0] if parts[0] in ORDER else None
    return parts[1] if len(parts) > 1 and parts[1] in ORDER else None


def imported(tree):
    """The names of modules, with those that may be modules, that a module imports anywhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def upward(name, source):
    """A line per import of a module that leads to its right in the order."""
    mine = room_of(name)
    for line, other in imported(ast.parse(source)):
        theirs = room_of(other.split("."))
        if mine and theirs and ORDER.index(theirs) > ORDER.index(mine):
            yield f"{'.'.join(name)}:{line} imports {other}"


def test_imports_run_down_only():
    found = [
        line
        for path in sources()
        for line in upward(path.relative_to(ROOT).with_suffix("").parts, path.read_text())
    ]
    assert not found, found


def test_an_import_that_runs_up_is_found():
    name = ("hne_tf", "exported", "manifest")
    for source in (
        "import hne_tf.export.signatures",
        "from hne_tf.models import weights",
        "from hne_tf import client",
        "def later():\n    from hne_tf.bin import app",
        "if TYPE_CHECKING:\n    from serving.load import Point",
    ):
        assert len(list(upward(name, source))) == 1, source
    for source in ("import json", "from hne_tf.tree import Tree", "from hne_tf.exported import x"):
        assert not list(upward(name, source)), source


def test_every_room_has_its_place():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert rooms | modules == set(ORDER) - {"serving", "benchmarks"}


def test_the_top_and_each_room_are_small():
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_AT_THE_TOP
    counts = collections.Counter(path.parent for path in PACKAGE.rglob("*.py"))
    large = {
        str(room): count
        for room, count in counts.items()
        if room != PACKAGE and count > MOST_IN_A_ROOM
    }
    assert not large


def defined(tree):
    """The public classes and aliases of types of a module."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name[0].isupper() and not name.isupper():
                yield name


def test_a_public_name_of_a_type_means_one_thing():
    places = collections.defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in defined(ast.parse(path.read_text())):
            if not name.startswith("_"):
                places[name].append(str(path.relative_to(PACKAGE)))
    twice = {name: paths for name, paths in places.items() if len(paths) > 1}
    assert not twice
