import json
import os
import pathlib
import re
import shutil

import pytest

from hne_tf import hardware
from hne_tf.bin import train
from hne_tf.files import write_json
from hne_tf.training.workdir import Workdir

ROOT = pathlib.Path(__file__).parents[3]
DIGITS = f"--config={ROOT / 'configs/digits.py'}"


def test_a_config_and_its_overrides_become_a_run(run_binary, tmp_path):
    code, lines, _ = run_binary(
        train,
        DIGITS,
        f"--workdir={tmp_path / 'run'}",
        "--config.model.branching=(1, 2)",
        "--config.model.resnet.widths=(4, 4)",
        "--config.model.resnet.units=(1, 1)",
        "--config.model.resnet.strides=(2, 2)",
        "--config.training.epochs=0.2",
        "--config.optimizer.warmup_epochs=0.1",
    )
    assert code == 0
    assert "trained 4 steps" in lines[-1]
    assert json.loads((tmp_path / "run/config.json").read_text())["model"]["branching"] == [1, 2]


def test_a_run_goes_on_with_onednn_as_it_began_or_says_that_it_does_not(
    monkeypatch, run_binary, trained_workdir, tiny_config, tmp_path
):
    workdir = Workdir(shutil.copytree(trained_workdir.path, tmp_path / "run"))
    write_json(workdir.arithmetic_path, {"onednn": False, "operation_threads": 1})
    (tmp_path / "config.py").write_text(
        "import ml_collections\n\n"
        f"def get_config():\n    return ml_collections.ConfigDict({tiny_config().to_dict()!r})\n"
    )
    monkeypatch.setenv(hardware.ONEDNN_VARIABLE, "1")
    monkeypatch.delenv(hardware.ONEDNN_VARIABLE)
    code, lines, _ = run_binary(
        train, f"--config={tmp_path / 'config.py'}", f"--workdir={workdir.path}"
    )
    assert code == 0
    assert os.environ[hardware.ONEDNN_VARIABLE] == "0"
    # This process has loaded TensorFlow before, with oneDNN.
    assert lines[0].startswith("note: the run was computed with oneDNN off, 1 threads")
    assert "goes on with oneDNN on" in lines[0]


@pytest.mark.parametrize("name", [path.name for path in (ROOT / "configs").glob("[a-z]*.py")])
def test_every_config_describes_a_model_that_fits_its_tree(name):
    from hne_tf.training import build
    from hne_tf.training.config import from_json

    namespace = {}
    exec((ROOT / "configs" / name).read_text(), namespace)
    config = namespace["get_config"]()
    build.check_model(config)
    # Where a builder gives the network, it is cut in the tree's blocks.
    if not build.is_given(config):
        assert build.architecture(config).blocks == build.tree(config).blocks
    assert from_json(json.loads(json.dumps(config.to_dict()))).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--wokdir=x"], ["wokdir"]),
        ([f"--config={ROOT / 'configs/nowhere.py'}"], ["nowhere.py"]),
        ([DIGITS, "--config.training.epocs=3"], ["epocs"]),
        ([DIGITS, "--config.training.epochs=three"], ["epochs", "three"]),
        ([DIGITS, "--config.model.branching=(1, 2)"], ["branching", "(1, 2)"]),
        ([DIGITS, "--config.objective.hierarchical.alpha=-1"], ["alpha", "-1"]),
        ([DIGITS, "--config.objective.hierarchical.temperature=0"], ["temperature", "0"]),
        ([DIGITS, "--config.data.name=mnist"], ["data.name", "mnist"]),
        ([DIGITS, "digits"], ["only flags", "digits"]),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(
    assert_refused, tmp_path, arguments, words
):
    if not any("--config=" in argument for argument in arguments):
        arguments = [DIGITS, *arguments]
    assert_refused(train, [*arguments, f"--workdir={tmp_path / 'run'}"], *words)
    assert not (tmp_path / "run").exists()


def test_required_flags_are_named(assert_refused):
    assert_refused(train, [], "config")
    assert_refused(train, [DIGITS], "workdir")


def test_a_missing_data_set_names_the_flag_that_gets_it(assert_refused, tmp_path):
    arguments = [
        f"--config={ROOT / 'configs/cifar10_cpu.py'}",
        f"--config.data.data_dir={tmp_path}",
        f"--workdir={tmp_path / 'run'}",
    ]
    assert_refused(train, arguments, "cifar10", str(tmp_path), "--config.data.download=True")


def test_costs_are_shown_before_training(run_binary):
    flags = [
        DIGITS,
        "--config.model.branching=(1, 3)",
        "--config.model.resnet.unit=basic",
        "--config.model.resnet.widths=(4, 6)",
        "--config.model.resnet.units=(1, 1)",
        "--config.model.resnet.strides=(1, 2)",
        "--config.model.resnet.stem_width=4",
        "--cost",
    ]
    code, lines, _ = run_binary(train, *flags)
    assert code == 0
    rows = [re.split(r" *\| *", line.strip("| ")) for line in lines if line.startswith("| ")]
    # 8 x 8 pixels of one channel; a stem and two convolutions, then two and a shortcut on
    # 4 x 4, and a classifier of ten.
    trunk = 64 * 9 * (1 * 4 + 2 * 4 * 4)
    branch = 16 * (9 * (4 * 6 + 6 * 6) + 4 * 6) + 6 * 10
    of_trunk = 9 * (1 * 4 + 2 * 4 * 4) + 3 * 4
    of_branch = 9 * (4 * 6 + 6 * 6) + 4 * 6 + 3 * 6 + 6 * 10 + 10
    sizes = [
        (str(n), f"{trunk + n * branch:,}", f"{of_trunk + n * of_branch:,}") for n in (1, 2, 3)
    ]
    assert [tuple(row[:3]) for row in rows[2:5]] == sizes
    assert rows[2][3] == "1.00"
    assert rows[-2:] == [
        ["0", "1", f"{trunk:,}", f"{of_trunk:,}"],
        ["1", "3", f"{3 * branch:,}", f"{3 * of_branch:,}"],
    ]


def test_costs_and_a_run_are_two_things(run_binary, tmp_path):
    flags = [DIGITS, "--cost", f"--workdir={tmp_path}"]
    code, _, errors = run_binary(train, *flags)
    assert code != 0
    assert "Exactly one of (workdir, write_data, cost)" in "\n".join(errors)
