"""The Bazel description against the sources: every module, import and requirement is declared.

BUILD files are Python syntax and are only parsed, so no Bazel is needed. Without
pytest, this prints what is wrong and the text to paste:

    python tests/test_build_files.py
"""

import ast
import dataclasses
import graphlib
import pathlib
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator

import pytest

# Resolved, because under Bazel this file is a link into the checkout.
ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("hne_tf", "serving", "configs", "benchmarks", "tests")
RULES = ("py_binary", "py_library", "py_test")
# Import names, dotted where a distribution shares its first part with others,
# that are not the name of their distribution.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "google.protobuf": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "sklearn": "scikit-learn",
    "tensorflow_serving": "tensorflow-serving-api",
    "yaml": "pyyaml",
}
# The order in which buildifier puts attributes; others are in between, sorted.
FIRST_ATTRIBUTES = ("name", "size", "timeout", "testonly", "srcs")
LAST_ATTRIBUTES = ("deps",)


@dataclasses.dataclass(frozen=True)
class Target:
    """One call of a rule in a BUILD file; `folder` is `""` for the root."""

    folder: str
    rule: str
    attributes: dict[str, ast.expr]

    @property
    def name(self) -> str:
        return ast.literal_eval(self.attributes["name"])

    @property
    def label(self) -> str:
        return _label(self.folder, self.name)

    @property
    def build_file(self) -> str:
        return _join(self.folder, "BUILD")

    def strings(self, attribute: str) -> list[str]:
        """The strings of a list attribute; a `glob` has none."""
        node = self.attributes.get(attribute)
        return ast.literal_eval(node) if isinstance(node, ast.List) else []

    @property
    def sources(self) -> list[str]:
        """Paths of `srcs` from the root; other targets among them are left out."""
        return [
            _join(self.folder, source) for source in self.strings("srcs") if source[0] not in ":/@"
        ]

    def text(self, deps: set[str]) -> str:
        """The target as buildifier writes it, with these absolute labels as deps."""
        attributes: dict[str, ast.expr] = {**self.attributes}
        attributes.pop("deps", None)
        if deps:
            attributes["deps"] = _strings(_sorted_labels(_near(dep, self.folder) for dep in deps))

        def position(name: str) -> tuple[int, int, str]:
            if name in FIRST_ATTRIBUTES:
                return 0, FIRST_ATTRIBUTES.index(name), name
            return (2 if name in LAST_ATTRIBUTES else 1), 0, name

        lines = [
            f"    {name} = {_text(attributes[name])}," for name in sorted(attributes, key=position)
        ]
        return "\n".join([f"{self.rule}(", *lines, ")"])


def _in_tests(path: str) -> bool:
    return path.split("/")[0] == "tests"


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _label(folder: str, name: str) -> str:
    return f"//{folder}" if name == folder.rpartition("/")[2] else f"//{folder}:{name}"


def _near(label: str, folder: str) -> str:
    """A label as it is written in a folder's BUILD file."""
    if label == f"//{folder}":
        return f":{folder.rpartition('/')[2]}"
    return label.removeprefix(f"//{folder}") if label.startswith(f"//{folder}:") else label


def _far(label: str, folder: str) -> str:
    """The absolute label of one written in a folder's BUILD file."""
    if label.startswith("@"):
        return label
    where, colon, name = label.partition(":")
    if not where.startswith("//"):
        return _label(folder, name if colon else where)
    return _label(where[2:], name) if colon else label


def _sorted_labels(labels: Iterable[str]) -> list[str]:
    """Labels in buildifier's order: of this folder, of other folders, of distributions."""

    def key(label: str) -> tuple[int, list[str]]:
        group = 2 if label.startswith("@") else label.startswith("//")
        return group, label.replace(":", ".").split(".")

    return sorted(labels, key=key)


def _strings(values: list[str]) -> ast.List:
    return ast.List([ast.Constant(value) for value in values])


def _text(node: ast.expr) -> str:
    """An attribute's value in a target."""
    match node:
        case ast.Constant(value=str()):
            return '"' + node.value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case ast.List(elts=[_, _, *_]):
            return "[\n" + "".join(f"        {_text(item)},\n" for item in node.elts) + "    ]"
        case ast.List():
            return f"[{''.join(map(_text, node.elts))}]"
        case ast.Call(func=ast.Name()):
            values = [ast.unparse(value) for value in node.args]
            values += [f"{item.arg} = {ast.unparse(item.value)}" for item in node.keywords]
            return f"{node.func.id}({', '.join(values)})".replace("'", '"')
    return ast.unparse(node).replace("'", '"')


@dataclasses.dataclass(frozen=True)
class Checkout:
    """Sources and BUILD files below a folder, parsed."""

    root: pathlib.Path
    sources: dict[str, ast.Module]
    builds: dict[str, ast.Module]

    @classmethod
    def read(cls, root: pathlib.Path) -> "Checkout":
        def parsed(paths: Iterable[pathlib.Path]) -> dict[str, ast.Module]:
            found = {path.relative_to(root).as_posix(): path.read_text() for path in paths}
            return {path: ast.parse(found[path], path) for path in sorted(found)}

        folders = [root / folder for folder in FOLDERS]
        sources = parsed(path for folder in folders for path in folder.rglob("*.py"))
        builds = [path for folder in folders for path in folder.rglob("BUILD")]
        return cls(
            root, sources, parsed(path for path in [root / "BUILD", *builds] if path.is_file())
        )

    def targets(self) -> list[Target]:
        found = []
        for path, build in self.builds.items():
            for statement in build.body:
                match statement:
                    case ast.Expr(value=ast.Call(func=ast.Name(id=rule), keywords=keywords)):
                        attributes = {item.arg: item.value for item in keywords if item.arg}
                        if "name" in attributes:
                            found.append(Target(path.rpartition("/")[0], rule, attributes))
        return found

    def modules(self) -> dict[str, str]:
        """Dotted names to paths."""
        return {
            path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
            for path in self.sources
        }


def pins(root: pathlib.Path, name: str) -> dict[str, str]:
    """Distributions of a requirements file, and of those that it includes, to what follows."""
    found = {}
    for line in (root / name).read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r"):
            found |= pins(root, line[2:].strip())
        elif line:
            distribution = re.split(r"[^\w.-]", line)[0]
            found[_normalized(distribution)] = line.removeprefix(distribution)
    return found


def _normalized(distribution: str) -> str:
    """The name under which the pip extension offers a distribution."""
    return re.sub(r"[-_.]+", "_", distribution).lower()


def _distribution(name: str) -> str:
    """The distribution of an imported dotted name."""
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next(
        (DISTRIBUTIONS[prefix] for prefix in prefixes if prefix in DISTRIBUTIONS),
        parts[0].replace("_", "-"),
    )


def imported(path: str, source: ast.Module, modules: dict[str, str]) -> set[str]:
    """Dotted names that a file imports, anywhere in it.

    `from package import name` is `package.name` if that is one of `modules`,
    else `package`. A string that is the full dotted name of a module counts as
    well: it is imported lazily or run with `python -m`. The `__init__` of a
    package is imported only where its own names are: Bazel makes an empty one
    where it is not among the files of a target.
    """
    names = set()
    for node in ast.walk(source):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    package = path.split("/")[: -node.level]
                    base = ".".join([*package, *filter(None, [node.module])])
                inner = {alias.name: f"{base}.{alias.name}" for alias in node.names}
                names |= {name if name in modules else base for name in inner.values()}
            case ast.Constant(value=str(value)) if "." in value and value in modules:
                names.add(value)
    return {name for name in names if modules.get(name) != path}


def conftests(path: str, sources: dict[str, ast.Module]) -> set[str]:
    """Files that pytest loads before a file: the `conftest.py` of each folder above."""
    if not _in_tests(path) or path.endswith("/__init__.py"):
        return set()
    parents = [parent.as_posix() for parent in pathlib.PurePath(path).parents]
    return {f"{parent}/conftest.py" for parent in parents} & sources.keys() - {path}


def proposed(path: str, source: ast.Module) -> Target:
    """A new target for a file that has none."""
    folder, _, file = path.rpartition("/")
    stem = file.removesuffix(".py")
    attributes: dict[str, ast.expr] = {
        "name": ast.Constant(folder.rpartition("/")[2] if stem == "__init__" else stem),
        "srcs": _strings([file]),
    }
    if _in_tests(path) and stem.startswith("test_"):
        attributes["args"] = _strings([f"$(rootpath {file})"])
        attributes["data"] = _strings(["//:pyproject.toml"])
        attributes["main_module"] = ast.Constant("pytest")
        return Target(folder, "py_test", attributes)
    if _in_tests(path):
        attributes["testonly"] = ast.Constant(True)
        return Target(folder, "py_library", attributes)
    runs = any(isinstance(node, ast.If) and "__main__" in ast.unparse(node) for node in source.body)
    # Below `hne_tf`, only `bin` holds commands; elsewhere what can be run is one.
    command = runs and (folder == "hne_tf/bin" or not path.startswith("hne_tf/"))
    return Target(folder, "py_binary" if command else "py_library", attributes)


class Checker:
    """Compares the targets of a checkout with its sources."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout = checkout
        self.modules = checkout.modules()
        self.targets = checkout.targets()
        self.python_targets = [target for target in self.targets if target.rule in RULES]
        self.imports = {
            path: imported(path, source, self.modules) for path, source in checkout.sources.items()
        }
        self.owners: dict[str, list[Target]] = {path: [] for path in checkout.sources}
        for target in self.python_targets:
            for path in target.sources:
                self.owners.setdefault(path, []).append(target)

    def problems(self) -> list[str]:
        """What is wrong, each starting with the file that it is about."""
        return [
            *self.coverage(),
            *self.missing_files(),
            *self.dependencies(),
            *self.tests(),
            *self.loads(),
            *self.cycles(),
            *self.requirements(),
        ]

    def needed(self, target: Target) -> set[str]:
        """Absolute labels that a target's sources import."""
        labels = set()
        for path in target.sources:
            for name in self.imports.get(path, ()):
                if name in self.modules:
                    labels |= self._labels(self.modules[name])
                elif self._is_third_party(name):
                    labels.add(f"@pypi//{_normalized(_distribution(name))}")
            for conftest in conftests(path, self.checkout.sources):
                labels |= self._labels(conftest)
        if target.rule == "py_test":
            labels.add("@pypi//pytest")
        return labels - {target.label}

    def coverage(self) -> Iterator[str]:
        """Every source is in one target."""
        for path, source in self.checkout.sources.items():
            owners = self.owners[path]
            if len(owners) > 1:
                labels = ", ".join(owner.label for owner in owners)
                yield f"{path}: is in the srcs of one target, got {labels}"
            elif not owners:
                target = proposed(path, source)
                yield f"{path}: is in no target; {self._paste(target)}"

    def missing_files(self) -> Iterator[str]:
        """Every entry of srcs exists."""
        for target in self.targets:
            for path in target.sources:
                if not (self.checkout.root / path).is_file():
                    yield f"{target.build_file}: srcs of {target.label} must exist, got {path}"

    def dependencies(self) -> Iterator[str]:
        """Imports and deps are the same."""
        for target in self.python_targets:
            needed = self.needed(target)
            declared = [_far(dep, target.folder) for dep in target.strings("deps")]
            findings = [f"lacks {dep}" for dep in _sorted_labels(needed.difference(declared))]
            surplus = _sorted_labels(set(declared) - needed)
            findings += [f"imports nothing of {dep}" for dep in surplus]
            findings += [f"names {dep} twice" for dep in set(declared) if declared.count(dep) > 1]
            written = target.strings("deps")
            if not findings and written != _sorted_labels(
                _near(dep, target.folder) for dep in needed
            ):
                findings = ["has deps that are not sorted, or with a longer label than needed"]
            if findings:
                files = ", ".join(target.sources)
                yield f"{files}: {target.label} {', '.join(findings)}; {self._paste(target)}"

    def tests(self) -> Iterator[str]:
        """Every test file is run by pytest in a py_test."""
        for path, source in self.checkout.sources.items():
            file = path.rpartition("/")[2]
            if not (_in_tests(path) and file.startswith("test_") and self.owners[path]):
                continue
            target = self.owners[path][0]
            main = target.attributes.get("main_module")
            if (
                target.rule != "py_test"
                or f"$(rootpath {file})" not in target.strings("args")
                or not isinstance(main, ast.Constant)
                or main.value != "pytest"
            ):
                yield (
                    f"{path}: {target.label} must be a py_test whose pytest gets the file; "
                    + self._paste(proposed(path, source))
                )

    def loads(self) -> Iterator[str]:
        """A BUILD file loads the rules that it uses."""
        for path, build in self.checkout.builds.items():
            used = {target.rule for target in self.python_targets if target.build_file == path}
            loaded = set()
            for node in ast.walk(build):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "load":
                    loaded |= {ast.literal_eval(name) for name in node.args[1:]}
            if used != loaded:
                yield f"{path}: must load what it uses; paste:\n\n{_load(used)}\n"

    def cycles(self) -> Iterator[str]:
        """Bazel takes no cycle of deps, though Python does where an import is in a function."""
        graph = {target.label: self.needed(target) for target in self.python_targets}
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            cycle = error.args[1]
            first = next(target for target in self.python_targets if target.label == cycle[0])
            yield f"{first.build_file}: deps must not form a circle, got {' <- '.join(cycle)}"

    def requirements(self) -> Iterator[str]:
        """Every imported distribution is pinned."""
        runtime = pins(self.checkout.root, "requirements.txt")
        development = pins(self.checkout.root, "requirements-dev.txt")
        for path in self.checkout.sources:
            file, pinned = "requirements.txt", runtime
            if _in_tests(path):
                file, pinned = "requirements-dev.txt", runtime | development
            for name in filter(self._is_third_party, sorted(self.imports[path])):
                distribution = _distribution(name)
                if _normalized(distribution) not in pinned:
                    yield f"{path}: imports {name}, so {file} must pin {distribution}"

    def _is_third_party(self, name: str) -> bool:
        return name.split(".")[0] not in {*FOLDERS, *sys.stdlib_module_names}

    def _labels(self, path: str) -> set[str]:
        """The target of a source, or the one that it should get."""
        owners = self.owners[path] or [proposed(path, self.checkout.sources[path])]
        return {owners[0].label}

    def _paste(self, target: Target) -> str:
        text = target.text(self.needed(target))
        if target.build_file not in self.checkout.builds:
            visibility = (
                "//tests:__subpackages__" if _in_tests(target.folder) else "//visibility:public"
            )
            package = f'package(default_visibility = ["{visibility}"])'
            text = f"{_load({target.rule})}\n\n{package}\n\n{text}"
        verb = "replace it in" if target in self.targets else "add to"
        return f"{verb} {target.build_file}:\n\n{text}\n"


def _load(rules: set[str]) -> str:
    names = ", ".join(f'"{rule}"' for rule in sorted(rules))
    return f'load("@rules_python//python:defs.bzl", {names})'


def module_problems(root: pathlib.Path) -> Iterator[str]:
    """MODULE.bazel says what pyproject.toml says, and reads requirements that exist."""
    calls: dict[str, dict[str, object]] = {}
    for node in ast.walk(ast.parse((root / "MODULE.bazel").read_text())):
        if isinstance(node, ast.Call):
            values = {item.arg: ast.literal_eval(item.value) for item in node.keywords}
            calls.setdefault(ast.unparse(node.func), values)
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    for key in ("name", "version"):
        if calls["module"][key] != project[key]:
            yield f"MODULE.bazel: {key} must be {project[key]!r}, got {calls['module'][key]!r}"
    oldest = project["requires-python"].removeprefix(">=")
    for call in ("python.toolchain", "pip.parse"):
        if calls[call]["python_version"] != oldest:
            version = calls[call]["python_version"]
            yield f"MODULE.bazel: python_version of {call} must be {oldest!r}, got {version!r}"
    lock = str(calls["pip.parse"]["requirements_lock"]).removeprefix("//:")
    if not (root / lock).is_file():
        yield f"MODULE.bazel: requirements_lock must be a file, got {lock!r}"
        return
    for distribution, version in pins(root, "requirements.txt").items():
        if (locked := pins(root, lock).get(distribution)) != version:
            yield f"{lock}: must pin {distribution}{version}, got {locked}"


def test_the_build_files_describe_the_sources():
    problems = Checker(Checkout.read(ROOT)).problems()
    assert not problems, "\n".join(["", *problems])


def test_the_module_file_describes_the_project():
    assert list(module_problems(ROOT)) == []


# The checks themselves, on a small tree that each test breaks in one place.

LOAD = 'load("@rules_python//python:defs.bzl", "py_library")\n'
FAKE = {
    "requirements.txt": "numpy==2.4.6\npillow==13.0.0\nprotobuf==7.36.2\n",
    "requirements-dev.txt": "-r requirements.txt\npytest==9.2.0  # runs the tests\n",
    "BUILD": 'exports_files(["pyproject.toml"])\n',
    "hne_tf/__init__.py": "",
    "hne_tf/leaf.py": "import math\n",
    "hne_tf/branch.py": (
        "from typing import TYPE_CHECKING\n"
        "from PIL import Image\n"
        "from google.protobuf import message\n"
        "from hne_tf import leaf\n"
        "if TYPE_CHECKING:\n    from hne_tf.trunk import Trunk\n"
        "def grow():\n    import numpy.linalg\n    from .models.node import Node\n"
    ),
    "hne_tf/trunk.py": "",
    "hne_tf/models/node.py": "",
    "hne_tf/BUILD": LOAD
    + """
py_library(
    name = "branch",
    srcs = ["branch.py"],
    deps = [
        ":leaf",
        ":trunk",
        "//hne_tf/models:node",
        "@pypi//numpy",
        "@pypi//pillow",
        "@pypi//protobuf",
    ],
)

py_library(
    name = "hne_tf",
    srcs = ["__init__.py"],
)

py_library(
    name = "leaf",
    srcs = ["leaf.py"],
)

py_library(
    name = "trunk",
    srcs = ["trunk.py"],
)
""",
    "hne_tf/models/BUILD": LOAD
    + """
py_library(
    name = "node",
    srcs = ["node.py"],
)
""",
    "tests/conftest.py": "import pytest\n",
    "tests/test_leaf.py": "from hne_tf.leaf import Leaf\n",
    "tests/BUILD": """load("@rules_python//python:defs.bzl", "py_library", "py_test")

py_library(
    name = "conftest",
    testonly = True,
    srcs = ["conftest.py"],
    deps = ["@pypi//pytest"],
)

py_test(
    name = "test_leaf",
    size = "small",
    srcs = ["test_leaf.py"],
    args = ["$(rootpath test_leaf.py)"],
    data = ["//:pyproject.toml"],
    main_module = "pytest",
    deps = [
        ":conftest",
        "//hne_tf:leaf",
        "@pypi//pytest",
    ],
)
""",
}


def fake_problems(root, changes):
    """Problems of the fake tree with `(file, old, new)` applied; None for old sets the content."""
    files = dict(FAKE)
    for path, old, new in changes:
        assert old is None or old in files[path]
        files[path] = new if old is None else files[path].replace(old, new)
    for path, content in files.items():
        if content is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(content)
    return Checker(Checkout.read(root)).problems()


def test_a_described_tree_has_no_problems(tmp_path):
    assert fake_problems(tmp_path, []) == []


@pytest.mark.parametrize(
    ("changes", "file", "words"),
    [
        pytest.param(
            [("hne_tf/root.py", None, "from hne_tf.leaf import Leaf\n")],
            "hne_tf/root.py",
            "is in no target",
            id="no target",
        ),
        pytest.param(
            [("serving/client.py", None, "")],
            "serving/client.py",
            'add to serving/BUILD:\n\nload("@rules_python',
            id="no BUILD file",
        ),
        pytest.param(
            [("hne_tf/BUILD", '["trunk.py"]', '["trunk.py", "leaf.py"]')],
            "hne_tf/leaf.py",
            "got //hne_tf:leaf, //hne_tf:trunk",
            id="two targets",
        ),
        pytest.param(
            [("hne_tf/BUILD", '["trunk.py"]', '["trunk.py", "stem.py"]')],
            "hne_tf/BUILD",
            "hne_tf/stem.py",
            id="source that does not exist",
        ),
        pytest.param(
            [("hne_tf/BUILD", '        ":leaf",\n', "")],
            "hne_tf/branch.py",
            "lacks //hne_tf:leaf;",
            id="module imported from its package",
        ),
        pytest.param(
            [("hne_tf/BUILD", '        ":trunk",\n', "")],
            "hne_tf/branch.py",
            "lacks //hne_tf:trunk;",
            id="import for type checking",
        ),
        pytest.param(
            [("hne_tf/BUILD", '        "//hne_tf/models:node",\n', "")],
            "hne_tf/branch.py",
            "lacks //hne_tf/models:node;",
            id="relative import in a function",
        ),
        pytest.param(
            [("hne_tf/leaf.py", None, "LAZY = 'hne_tf.models.node'\n")],
            "hne_tf/leaf.py",
            "lacks //hne_tf/models:node;",
            id="module named in a string",
        ),
        pytest.param(
            [("tests/test_leaf.py", None, "import hne_tf\nfrom hne_tf import leaf\n")],
            "tests/test_leaf.py",
            "lacks //hne_tf;",
            id="package itself",
        ),
        pytest.param(
            [("hne_tf/BUILD", '        "@pypi//numpy",\n', "")],
            "hne_tf/branch.py",
            "lacks @pypi//numpy;",
            id="distribution of a submodule",
        ),
        pytest.param(
            [("hne_tf/BUILD", '        "@pypi//pillow",\n', "")],
            "hne_tf/branch.py",
            "lacks @pypi//pillow;",
            id="distribution of another name",
        ),
        pytest.param(
            [("hne_tf/BUILD", '        "@pypi//protobuf",\n', "")],
            "hne_tf/branch.py",
            "lacks @pypi//protobuf;",
            id="distribution of a dotted name",
        ),
        pytest.param(
            [("hne_tf/leaf.py", None, ""), ("tests/test_leaf.py", None, "")],
            "tests/test_leaf.py",
            "imports nothing of //hne_tf:leaf;",
            id="module not imported",
        ),
        pytest.param(
            [("tests/BUILD", '"@pypi//pytest"]', '"@pypi//numpy", "@pypi//pytest"]')],
            "tests/conftest.py",
            "imports nothing of @pypi//numpy;",
            id="distribution not imported",
        ),
        pytest.param(
            [("hne_tf/BUILD", '":leaf"', '":leaf",\n        "//hne_tf:leaf"')],
            "hne_tf/branch.py",
            "names //hne_tf:leaf twice",
            id="dep twice",
        ),
        pytest.param(
            [("hne_tf/BUILD", '":leaf"', '"//hne_tf:leaf"')],
            "hne_tf/branch.py",
            "longer label",
            id="long label",
        ),
        pytest.param(
            [("tests/BUILD", '        ":conftest",\n', "")],
            "tests/test_leaf.py",
            "lacks //tests:conftest;",
            id="conftest of a folder above",
        ),
        pytest.param(
            [("requirements.txt", "numpy==2.4.6\n", "")],
            "hne_tf/branch.py",
            "requirements.txt must pin numpy",
            id="distribution not pinned",
        ),
        pytest.param(
            [
                ("requirements.txt", "numpy", "pytest==9.2.0\nnumpy"),
                ("hne_tf/leaf.py", None, "import hypothesis\n"),
                ("requirements-dev.txt", "pytest", "hypothesis==6.170.15\npytest"),
            ],
            "hne_tf/leaf.py",
            "requirements.txt must pin hypothesis",
            id="distribution pinned for development only",
        ),
        pytest.param(
            [("requirements-dev.txt", "pytest", "ruff")],
            "tests/conftest.py",
            "requirements-dev.txt must pin pytest",
            id="test distribution not pinned",
        ),
        pytest.param(
            [("tests/BUILD", "py_test(", "py_library(")],
            "tests/test_leaf.py",
            "must be a py_test",
            id="test in a library",
        ),
        pytest.param(
            [("tests/BUILD", "rootpath test_leaf.py", "rootpath test_other.py")],
            "tests/test_leaf.py",
            "must be a py_test whose pytest gets the file",
            id="test of another file",
        ),
        pytest.param(
            [("tests/BUILD", '"py_library", "py_test")', '"py_test")')],
            "tests/BUILD",
            LOAD.strip().replace(")", ', "py_test")'),
            id="rule not loaded",
        ),
        pytest.param(
            [("hne_tf/leaf.py", None, "def f():\n    from hne_tf import branch\n")],
            "hne_tf/BUILD",
            "circle",
            id="circle",
        ),
    ],
)
def test_what_is_not_described_is_found(tmp_path, changes, file, words):
    problems = fake_problems(tmp_path, changes)
    assert any(problem.startswith(f"{file}: ") and words in problem for problem in problems), (
        problems
    )


@pytest.mark.parametrize("path", ["hne_tf/BUILD", "hne_tf/models/BUILD", "tests/BUILD"])
def test_pasting_what_is_proposed_solves_it(tmp_path, path):
    folder = pathlib.PurePath(path).parent.as_posix()
    changes = [(path, None, FAKE[path].partition("\n")[0] + "\n")]
    problems = fake_problems(tmp_path / "without", changes)
    pasted = [
        problem.partition(f"add to {path}:\n\n")[2]
        for problem in problems
        if problem.startswith(f"{folder}/") and " is in no target" in problem
    ]
    content = "\n".join([FAKE[path].partition("\n")[0] + "\n", *pasted])
    assert fake_problems(tmp_path / "with", [(path, None, content)]) == []


def test_corrected_targets_keep_their_other_attributes(tmp_path):
    [problem] = fake_problems(tmp_path, [("tests/BUILD", '        ":conftest",\n', "")])
    assert problem.partition("replace it in tests/BUILD:\n\n")[2] in FAKE["tests/BUILD"]


@pytest.mark.parametrize(
    ("path", "source", "rule"),
    [
        ("hne_tf/bin/train.py", "if __name__ == '__main__':\n    run()\n", "py_binary"),
        ("hne_tf/bin/app.py", "", "py_library"),
        ("hne_tf/verification.py", "if __name__ == '__main__':\n    run()\n", "py_library"),
        ("benchmarks/step.py", "if __name__ == '__main__':\n    run()\n", "py_binary"),
        ("tests/serving/conftest.py", "", "py_library"),
        ("tests/serving/test_client.py", "", "py_test"),
    ],
)
def test_the_rule_follows_from_the_file(path, source, rule):
    assert proposed(path, ast.parse(source)).rule == rule


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('version = "0.1.0"', 'version = "0.2.0"', "version must be '0.1.0', got '0.2.0'"),
        ('name = "hne_tf"', 'name = "hne"', "name must be 'hne_tf', got 'hne'"),
        ('python_version = "3.11"', 'python_version = "3.12"', "must be '3.11', got '3.12'"),
        ("//:requirements_lock", "//:lock", "must be a file, got 'lock"),
        ("//:requirements_lock", "//:older", "older.txt: must pin keras=="),
    ],
)
def test_a_module_file_of_another_project_is_found(tmp_path, old, new, words):
    for name in ("pyproject.toml", "requirements.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "older.txt").write_text("keras==1.0.0\n")
    content = (ROOT / "MODULE.bazel").read_text()
    assert old in content
    (tmp_path / "MODULE.bazel").write_text(content.replace(old, new))
    problems = list(module_problems(tmp_path))
    assert any(words in problem for problem in problems), problems


if __name__ == "__main__":
    FOUND = [*Checker(Checkout.read(ROOT)).problems(), *module_problems(ROOT)]
    print("\n".join(FOUND) or "the BUILD files describe the sources")
    sys.exit(bool(FOUND))
