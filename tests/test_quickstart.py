"""The quickstart's script, with stubs in place of the commands, and its pictures."""

import pathlib
import shutil
import signal
import subprocess

import numpy as np
import pytest
from PIL import Image

from hne_tf import data
from hne_tf.training.config import default
from scripts import digit_pictures

ROOT = pathlib.Path(__file__).parents[1]

# Answers to `python -m <module>` as the commands would, where nothing goes wrong.
STUB = """#!/usr/bin/env bash
case "$2" in
{cases}
  hne_tf.bin.serve) echo "hne-serve: address=127.0.0.1:1"; exec sleep 60;;
  hne_tf.bin.predict) {answers};;
esac
"""
NOTICE = "Two budgets got the same size or one was refused"


def answer(size, right=355):
    return f"echo '{right} of 360 right, ensemble of {size}, 1.00 ms of 2 ms'; "


@pytest.fixture
def quickstart(tmp_path):
    """Runs the script; returns exit code and output."""

    def run(answers, cases=""):
        shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
        environment = tmp_path / "environment"
        python = environment / "bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(STUB.format(cases=cases, answers=answers))
        python.chmod(0o755)
        installed = ""
        for name in ("requirements_lock.txt", "requirements.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path)
            installed += (ROOT / name).read_text()
        (environment / ".installed-requirements.txt").write_text(installed)
        finished = subprocess.run(
            ["bash", tmp_path / "scripts/quickstart.sh"],
            env={"PATH": "/usr/bin:/bin", "HNE_VENV": str(environment)},
            capture_output=True,
            text=True,
            check=False,
            # What runs in the background of a shell ignores it, and so would the script.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        return finished.returncode, finished.stdout + finished.stderr

    return run


def test_answers_that_grow_with_the_budget_are_all_there_is(quickstart):
    code, output = quickstart(answer(1) + answer(4) + answer(16))
    assert code == 0, output
    assert "ensemble of 16" in output
    assert "runs/quickstart/report.html" in output.splitlines()[-5]
    assert NOTICE not in output


@pytest.mark.parametrize(
    "answers",
    [
        answer(1) + answer(1) + answer(16),
        answer(1, 354) + answer(16),
        answer(1) + answer(16) + answer(4),
        "exit 3",
    ],
    ids=["same size", "one refused", "slower than measured", "all refused"],
)
def test_a_busy_machine_is_no_failure(quickstart, answers):
    code, output = quickstart(answers)
    assert code == 0, output
    assert output.count(NOTICE) == 1
    assert "runs/quickstart/report.html" in output.splitlines()[-5]


@pytest.mark.parametrize(
    ("answers", "cases", "said"),
    [
        (answer(1) + answer(4, 200) + answer(16), "", "too few digits are right"),
        ("echo lost >&2; exit 1", "", "lost"),
        ("", "  hne_tf.bin.serve) exit 1;;", "the server did not start"),
        ("", "  hne_tf.bin.train) echo broken >&2; exit 1;;", "broken"),
        ("", "  hne_tf.bin.report) echo broken >&2; exit 1;;", "broken"),
    ],
    ids=["wrong answers", "no answers", "no server", "no training", "no page"],
)
def test_a_failure_is_one(quickstart, answers, cases, said):
    code, output = quickstart(answers, cases)
    assert code == 1
    assert said in output
    assert "Look next" not in output


def test_an_interrupt_ends_it(quickstart):
    # Ctrl-C reaches the script and the command, which may handle it and end with 0.
    stopped = "  hne_tf.bin.train) kill -INT $PPID; exit 0;;"
    code, output = quickstart(answer(1), stopped)
    assert code == 130, output
    assert "hne-evaluate" not in output


def test_pictures_are_the_test_split_by_class(tmp_path):
    digit_pictures.main(tmp_path)
    digits = data.load(default().data)
    images, labels = next(iter(digits.evaluation_batches("test", digits.examples("test"))))
    paths = sorted(tmp_path.glob("*/*.png"), key=lambda path: path.name)
    assert [path.parent.name for path in paths] == [str(label) for label in labels.numpy()]
    shown = [np.asarray(Image.open(path)) for path in paths]
    np.testing.assert_array_equal(shown, images.numpy()[..., 0])


def test_the_server_takes_all_test_digits_in_one_request():
    script = (ROOT / "scripts/quickstart.sh").read_text()
    examples = data.load(default().data).examples("test")
    assert script.count(f"--max_rows={examples} ") == 2
