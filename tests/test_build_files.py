"""The Bazel description against the sources: every module, import and requirement is declared.

`python -m tests.build_files` prints the text to paste where this fails.
"""

import ast
import pathlib

import pytest

from tests.build_files.checkout import ROOT, Checkout
from tests.build_files.checks import build_file_problems
from tests.build_files.expected import proposed_target
from tests.build_files.module_file import module_problems


def test_the_build_files_describe_the_sources():
    problems = build_file_problems(Checkout.read(ROOT))
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
    return build_file_problems(Checkout.read(root))


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


def test_a_helper_of_the_tests_depends_on_no_conftest(tmp_path):
    [problem] = fake_problems(tmp_path, [("tests/helper.py", None, "import math\n")])
    assert "add to tests/BUILD" in problem
    assert "deps" not in problem


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
    assert proposed_target(path, ast.parse(source)).rule == rule


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
