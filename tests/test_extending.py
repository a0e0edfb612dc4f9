"""docs/extending.md is followed to the letter: its files are written, its lines are added."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

CHECKOUT = pathlib.Path(__file__).parents[1]
PAGE = (CHECKOUT / "docs/extending.md").read_text()
OUTSIDE = CHECKOUT / "tests/outside"


def titled(language):
    """Blocks of a language by the file that they are titled with."""
    pattern = rf'^```{language} title="(.*?)"\n(.*?)^```'
    return dict(re.findall(pattern, PAGE, re.DOTALL | re.MULTILINE))


FILES = titled("python")
OF_THE_PACKAGE = {name: text for name, text in FILES.items() if "/" in name}
OF_THE_USER = {name: text for name, text in FILES.items() if "/" not in name}


def python(*arguments, folder, path):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(path), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted({path.name for path in OUTSIDE.glob("my_*.py")}))
def test_the_page_shows_the_files_that_go_everywhere(name):
    assert OF_THE_USER[name] == (OUTSIDE / name).read_text()


def test_python_runs_beside_the_user_s_files(tmp_path):
    for name, text in OF_THE_USER.items():
        (tmp_path / name).write_text(text)
    python("use_my_network.py", folder=tmp_path, path=CHECKOUT)
    assert (tmp_path / "mine.keras").exists()


@pytest.mark.slow
def test_a_new_file_a_line_and_a_test_are_all_that_the_package_needs(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", "*.npz")
    shutil.copytree(CHECKOUT / "hne_tf", tmp_path / "hne_tf", ignore=ignored)
    for name, text in OF_THE_PACKAGE.items():
        assert not (CHECKOUT / name).exists(), "a new file"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    diffs = titled("diff")
    assert len(diffs) == 5
    for name, diff in diffs.items():
        lines = diff.splitlines()
        before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
        after = "\n".join(line[1:] for line in lines)
        assert len([line for line in lines if line.startswith("+")]) == 1, "one line"
        text = (tmp_path / name).read_text()
        assert text.count(before) == 1, name
        (tmp_path / name).write_text(text.replace(before, after))
    tests = [name for name in OF_THE_PACKAGE if name.startswith("tests/")]
    assert len(tests) == 5
    python("-m", "pytest", "-p", "no:cacheprovider", *tests, folder=tmp_path, path=tmp_path)
