import os
import sys
import types

import pytest
from absl import flags

from configs import digits
from hne_tf import hardware
from hne_tf.bin import (
    app,
    compress,
    config_file,
    convert_tflite,
    evaluate,
    export,
    profile,
    report,
    serve,
    sweep,
)
from hne_tf.errors import InputError


def define_flags(values, argv):
    flags.DEFINE_integer("count", 1, "How many.", flag_values=values)


def run(main, *arguments):
    return app.run("tool", define_flags, main, arguments)


def test_main_gets_flags_and_the_other_arguments():
    seen = []
    code = run(lambda values, rest: seen.append((values.count, rest)), "--count=3", "a", "b")
    assert code == 0
    assert seen == [(3, ["a", "b"])]


def test_main_may_return_an_exit_code():
    assert run(lambda values, rest: 3) == 3


def test_flags_of_two_runs_in_a_process_do_not_mix():
    counts = []
    for arguments in (["--count=3"], []):
        run(lambda values, rest: counts.append(values.count), *arguments)
    assert counts == [3, 1]


@pytest.mark.parametrize(
    ("argument", "word"), [("--cuont=3", "cuont"), ("--count=many", "many"), ("--count", "count")]
)
def test_bad_flags_end_in_one_line_before_main(capsys, argument, word):
    assert run(lambda values, rest: pytest.fail("main was called"), argument) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("tool: ")
    assert word in errors[0]


def test_bad_input_ends_in_one_line(capsys):
    def main(values, rest):
        raise InputError("sizes must fit,\n got 3")

    assert run(main) == 1
    assert capsys.readouterr().err == "tool: sizes must fit, got 3\n"


def test_a_defect_keeps_its_traceback():
    def main(values, rest):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main)


def test_help_shows_the_flags_and_asks_for_none(capsys):
    def define_required(values, argv):
        define_flags(values, argv)
        flags.DEFINE_string("name", None, "Whose.", flag_values=values)
        flags.mark_flag_as_required("name", values)

    assert app.run("tool", define_required, lambda values, rest: None, ["--help"]) == 0
    assert "How many." in capsys.readouterr().out
    assert run(lambda values, rest: pytest.fail("main was called"), "--help") == 0
    assert "How many." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("binary", "onednn"),
    [
        (compress, True),
        (convert_tflite, True),
        (evaluate, True),
        (export, None),
        (profile, None),
        (report, True),
        (serve, None),
        (sweep, None),
    ],
)
def test_commands_that_compute_in_batches_have_onednn_unless_told_otherwise(
    monkeypatch, capsys, binary, onednn
):
    seen = []
    values = types.SimpleNamespace(model_base_path=None, upstream=[])
    monkeypatch.setattr(app, "run", lambda *arguments: seen.append(arguments[4](values)))
    binary.run([])
    assert seen == [onednn]
    monkeypatch.undo()
    assert binary.run(["--help"]) == 0
    assert "TF_ENABLE_ONEDNN_OPTS: 1 or 0" in capsys.readouterr().out


def test_onednn_is_chosen_before_main(monkeypatch):
    monkeypatch.setenv(hardware.ONEDNN_VARIABLE, "0")
    monkeypatch.delenv(hardware.ONEDNN_VARIABLE)
    seen = []
    for onednn in (None, app.in_calls, app.in_batches):
        app.run(
            "tool",
            define_flags,
            lambda values, rest: seen.append(os.environ.get(hardware.ONEDNN_VARIABLE)),
            [],
            onednn,
        )
    assert seen == [None, None, "1"]


def test_the_command_is_what_was_given():
    arguments = [
        f"--config={digits.__file__}",
        "--config.data.data_dir=my data",
        "--config.model.branching=(1, 2, 2)",
        "--config.model.resnet.widths=()",
        "--config.training.batch_size=8",
        "--only=a,b",
    ]
    values = flags.FlagValues()
    config_file.define(values, arguments, "Settings.")
    flags.DEFINE_list("only", [], "Some.", flag_values=values)
    flags.DEFINE_integer("rounds", 5, "Not given.", flag_values=values)
    values(["tool", *arguments])
    command = app.command("tool", values)
    assert command[0] == "tool"
    assert sorted(command[1:]) == sorted(arguments)


def test_integers_of_a_list_flag():
    assert app.integers("sizes", ["1", "16"]) == [1, 16]
    with pytest.raises(InputError, match="--sizes takes integers, got '1,two'"):
        app.integers("sizes", ["1", "two"])


def test_quiet_import_silences_native_code_only_inside(capfd):
    with app.quiet_import():
        os.write(2, b"CUDA is missing")
    os.write(2, b"a real error")
    assert capfd.readouterr().err == "a real error"


def test_a_config_imports_modules_of_the_working_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "base_of_config.py").write_text("COUNT = 3\n")
    config = tmp_path / "config.py"
    config.write_text(
        "import ml_collections\nimport base_of_config\n"
        "def get_config():\n"
        "    return ml_collections.ConfigDict({'count': base_of_config.COUNT})\n"
    )

    def define_config(values, argv):
        config_file.define(values, argv, "Settings.")

    def counts(argument):
        seen = []
        code = app.run(
            "tool", define_config, lambda values, rest: seen.append(values.config.count), [argument]
        )
        return code, seen

    path = list(sys.path)
    assert counts(f"--config={config}") == (2, [])
    assert "No module named 'base_of_config'" in capsys.readouterr().err.splitlines()[0]
    monkeypatch.chdir(tmp_path)
    assert counts("--config=config.py") == (0, [3])
    assert sys.path == path


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no /dev/zero")
def test_a_certificate_is_read_with_a_bound():
    with pytest.raises(InputError, match="--tls_ca must be a PEM file, got '/dev/zero'"):
        app.pem("tls_ca", "/dev/zero")
