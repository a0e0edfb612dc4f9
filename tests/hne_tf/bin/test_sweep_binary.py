import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from hne_tf.bin import app, sweep
from hne_tf.files import write_json

ROOT = pathlib.Path(__file__).parents[3]
CONFIG = """
from hne_tf.training.config import default
from hne_tf.sweeps import plan

def get_config():
    base = default()
    base.update_from_flattened_dict({
        "data.train_examples": 320,
        "model.branching": (2,),
        "model.resnet.unit": "basic",
        "model.resnet.widths": (4,),
        "model.resnet.units": (1,),
        "model.resnet.strides": (2,),
        "optimizer.warmup_epochs": 1.0,
        "training.epochs": 40.0,
        "training.batch_size": 32,
        "training.steps_per_call": 5,
        "training.checkpoint_every_epochs": 2.0,
        "training.validate_every_epochs": 20.0,
        "training.deterministic": True,
    })
    groups = [("independent", {"objective.name": "independent"})]
    return plan.describe(title="Tiny", base=base, groups=groups, seeds=(0, 1), split="test")
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny_sweep.py"
    path.write_text(CONFIG)
    return f"--config={path}"


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A finished sweep of two runs, its pages and its lines, that tests only read."""
    folder = tmp_path_factory.mktemp("sweeps")
    done = subprocess.run(
        command(config, folder / "root", "--jobs=2", f"--results={folder / 'tiny.md'}"),
        **environment(),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout.splitlines()


def command(config, root, *arguments):
    return [sys.executable, "-m", "hne_tf.bin.sweep", config, f"--root={root}", *arguments]


def environment():
    return {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True}


def runs(root):
    return sorted(path for path in root.iterdir() if (path / "config.json").exists())


def table(lines):
    return [line for line in lines if line.startswith("|")]


@pytest.mark.slow
def test_a_sweep_runs_all_and_shows_one_table(finished):
    folder, lines = finished
    assert lines[0] == "2 runs, 0 of them finished"
    assert sum(line.startswith("finished ") for line in lines) == 2
    assert len(runs(folder / "root")) == 2
    page = (folder / "tiny.md").read_text()
    assert "\n".join(table(lines)) in page
    assert "hne-sweep --config=" in page
    assert (folder / "tiny.png").stat().st_size > 1000
    (group,) = json.loads((folder / "tiny.json").read_text())["groups"]
    assert [run["seed"] for run in group["runs"]] == [0, 1]
    assert 0.2 < group["mean"]["accuracy"]["2"] <= 1
    assert group["deviation"]["accuracy"].keys() == {"1", "2"}


@pytest.mark.slow
def test_a_run_that_is_deleted_is_made_again_and_restores_the_table(
    finished, config, run_binary, tmp_path
):
    folder, lines = finished
    root = tmp_path / "root"
    shutil.copytree(folder / "root", root)
    shutil.rmtree(runs(root)[0])
    page = tmp_path / "tiny.md"
    code, again, _ = run_binary(sweep, config, f"--root={root}", f"--results={page}")
    assert code == 0
    assert again[0] == "2 runs, 1 of them finished"
    assert sum(line.startswith("started ") for line in again) == 1
    assert table(again) == table(lines)
    assert page.with_suffix(".json").read_text() == (folder / "tiny.json").read_text()


@pytest.mark.slow
def test_another_sweep_uses_the_runs_it_shares_and_reports_those_that_fail(
    finished, config, run_binary, tmp_path
):
    folder, _ = finished
    root = tmp_path / "root"
    shutil.copytree(folder / "root", root)
    groups = (
        ("broken", {"objective.hierarchical.alpha": -1.0}),
        ("mine", {"objective.name": "independent"}),
    )
    code, again, errors = run_binary(
        sweep,
        config,
        f"--root={root}",
        f"--config.groups={groups}",
        "--config.seeds=(0,)",
        f"--results={tmp_path / 'tiny.md'}",
        "--data_dir=/somewhere",
    )
    assert code == 1
    assert errors == ["hne-sweep: 1 of 2 runs failed, see above"]
    assert again[0] == "2 runs, 1 of them finished"
    (failure,) = [line for line in again if line.startswith("failed: broken, seed 0; log ")]
    assert failure.endswith("alpha must be 0 or more, got -1.0")
    assert pathlib.Path(failure.split("log ")[1].split(":")[0]).is_file()
    page = (tmp_path / "tiny.md").read_text()
    assert "'--config.seeds=(0,)'" in page
    assert "somewhere" not in page
    shared = json.loads((folder / "tiny.json").read_text())["groups"][0]["runs"][0]["accuracy"]
    assert table(again)[2].split("|")[2].strip() == "0 of 1"
    assert table(again)[3].split("|")[3].strip() == f"{100 * shared['1']:.1f}"


@pytest.mark.slow
def test_a_sweep_that_is_killed_and_stopped_ends_with_the_table_of_one_that_was_not(
    finished, config, tmp_path
):
    folder, _ = finished
    root, page = tmp_path / "root", tmp_path / "tiny.md"
    arguments = command(config, root, "--config.seeds=(1,)", f"--results={page}")

    def started_and_signalled(number, step):
        process = subprocess.Popen(
            arguments, **environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        wait_for_step(root, step)
        process.send_signal(number)
        return process.communicate(), process.returncode

    _, code = started_and_signalled(signal.SIGKILL, 50)
    assert code == -signal.SIGKILL
    (lines, errors), code = started_and_signalled(signal.SIGTERM, 150)
    assert code == app.EXIT_INTERRUPTED
    assert "stopped independent, seed 1" in lines
    assert errors == "hne-sweep: stopped before the end; the same command goes on from there\n"
    (log,) = (root / "logs").iterdir()
    assert "resumed at step" in log.read_text()
    assert not page.exists()
    subprocess.run(arguments, **environment(), capture_output=True, check=True)
    (expected,), (group,) = (
        json.loads(path.read_text())["groups"]
        for path in (folder / "tiny.json", page.with_suffix(".json"))
    )
    assert group["runs"] == expected["runs"][1:]


def wait_for_step(root, step):
    """Waits until the first run of a sweep has recorded a step."""
    deadline = time.monotonic() + 3600
    while time.monotonic() < deadline:
        # The last line may still be on its way.
        lines = [
            line for path in root.glob("*/metrics.jsonl") for line in path.read_text().splitlines()
        ][:-1]
        if lines and json.loads(lines[-1])["step"] >= step:
            return
        time.sleep(0.02)
    raise TimeoutError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--jobs=0"], ["jobs", "0"]),
        (["--jobs=two"], ["jobs", "two"]),
        (["--config.seeds=()"], ["seeds", "()"]),
        (["--config.base.training.epocs=3"], ["epocs"]),
        (["--config.base.training.deterministic=False"], ["deterministic", "False"]),
        (['--config.groups=(("a", {"objective.alhpa": 1}),)'], ["'a'", "objective.alhpa"]),
        (['--config.groups=(("a", {}), ("a", {}))'], ["names of groups", "a"]),
        (["--config.split=dev"], ["split", "dev"]),
        (["digits"], ["only flags", "digits"]),
        ([f"--config={ROOT / 'configs/digits.py'}"], ["fields title", "objective"]),
        ([f"--config={ROOT / 'configs/nowhere.py'}"], ["nowhere.py"]),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(
    assert_refused, config, tmp_path, arguments, words
):
    if not any("--config=" in argument for argument in arguments):
        arguments = [config, *arguments]
    assert_refused(sweep, [*arguments, f"--root={tmp_path / 'root'}"], *words)
    assert not (tmp_path / "root").exists()


def test_a_root_that_holds_something_else_is_refused_and_kept(assert_refused, config, tmp_path):
    write_json(tmp_path / "letters.json", [])
    assert_refused(sweep, [config, f"--root={tmp_path}"], "--root", "letters.json")
    assert [path.name for path in tmp_path.iterdir()] == ["letters.json"]


def test_required_flags_are_named(assert_refused, config):
    assert_refused(sweep, [], "config")
    assert_refused(sweep, [config], "root")


@pytest.mark.slow
def test_what_an_earlier_page_has_is_not_run_again(finished, config, run_binary, tmp_path):
    folder, lines = finished
    page = tmp_path / "tiny.md"
    known = f"--figures={folder / 'tiny.json'}"
    code, again, _ = run_binary(
        sweep, config, f"--root={tmp_path / 'root'}", known, f"--results={page}"
    )
    assert code == 0
    assert again[0] == "2 runs, 2 of them finished"
    assert table(again) == table(lines)
    assert page.with_suffix(".json").read_text() == (folder / "tiny.json").read_text()
    assert f"Not run again, figures of {folder / 'tiny.json'}: independent." in page.read_text()
