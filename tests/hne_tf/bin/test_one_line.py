"""What users and their machines get wrong is one line, and never a traceback."""

import errno
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import tensorflow as tf

from hne_tf.bin import app, config_file, convert_tflite, evaluate, export, sweep, train

ROOT = pathlib.Path(__file__).parents[3]
DIGITS = f"--config={ROOT / 'configs/digits.py'}"
TINY = [
    DIGITS,
    "--config.model.branching=(1, 2)",
    "--config.model.resnet.widths=(4, 4)",
    "--config.model.resnet.units=(1, 1)",
    "--config.model.resnet.strides=(2, 2)",
    "--config.training.epochs=0.2",
]


def run(main, *arguments):
    def define_flags(values, argv):
        config_file.define(values, argv, "Settings.")
        app.define_path(values, "workdir", None, "A folder.")
        app.define_paths(values, "models", [], "Files.")

    return app.run("tool", define_flags, main, arguments)


def told(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    return line


def raising(error):
    def main(values, rest):
        raise error

    return main


@pytest.mark.parametrize(
    "number",
    [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR],
    ids=errno.errorcode.get,
)
def test_a_file_that_cannot_be_written_is_named(capsys, number):
    assert run(raising(OSError(number, os.strerror(number), "runs/a"))) == 1
    assert told(capsys) == (
        "tool: files and folders must be readable and writable, "
        f"got 'runs/a': {os.strerror(number)}"
    )
    assert run(raising(OSError(number, os.strerror(number)))) == 1
    assert told(capsys).endswith(f"writable, got {os.strerror(number)}")


def test_what_tensorflow_says_of_a_full_disk_is_one_line(capsys):
    error = tf.errors.ResourceExhaustedError(None, None, "runs/a;\n No space left on device")
    assert run(raising(error)) == 1
    assert "got runs/a; No space left on device" in told(capsys)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        run(raising(tf.errors.ResourceExhaustedError(None, None, "out of memory")))


def test_other_errors_of_the_system_keep_their_traceback():
    hdf5 = OSError("unable to write (errno = 28, error message = 'No space left on device')")
    assert run(raising(hdf5)) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        run(raising(OSError(errno.EBADF, os.strerror(errno.EBADF))))


def test_ctrl_c_is_one_line_wherever_it_comes(capsys):
    assert run(raising(KeyboardInterrupt())) == 130
    assert told(capsys) == "tool: interrupted"

    def define_flags(values, argv):
        raise KeyboardInterrupt

    assert app.run("tool", define_flags, lambda values, rest: None, []) == 130


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_output_that_does_not_fit_is_one_line():
    program = (
        "import sys; from hne_tf.bin import app; "
        "sys.exit(app.run('tool', lambda v, a: None, lambda v, rest: print('x'), []))"
    )
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-c", program],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    assert process.returncode == 1
    assert process.stderr == (
        "tool: files and folders must be readable and writable, got No space left on device\n"
    )


def test_a_path_may_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    seen = []
    run(lambda values, rest: seen.extend([values.workdir, *values.models]), "--workdir=~/x",
        "--models=~/a,b")  # fmt: skip
    assert seen == ["/home/ada/x", "/home/ada/a", "b"]


@pytest.mark.parametrize(
    "given",
    [
        ["--config.model.branching=(5, 1)", "--config.model.branching=(1, 2)"],
        ["--config.model.branching", "(5, 1)", "--config.model.branching", "(1, 2)"],
    ],
)
def test_a_tuple_that_is_given_twice_is_the_last_one(given):
    seen = []
    assert run(lambda values, rest: seen.append(values.config.model.branching), DIGITS, *given) == 0
    assert seen == [(1, 2)]


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("trainin.epochs=3", "trainin"),
        ("training.epochs.most=3", "training.epochs.most"),
        ("training[0]=3", "0"),
        ("training..epochs=3", "training..epochs"),
        ("objective.settings.depth=1", "depth"),
    ],
)
def test_an_override_of_no_field_is_one_line(capsys, override, word):
    code = run(lambda values, rest: pytest.fail("main was called"), DIGITS, f"--config.{override}")
    assert code == 2
    line = told(capsys)
    assert "the config must have the field that is set, got" in line
    assert word in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config(:\n", ["line 1", "SyntaxError"]),
        ("import no_such_module\n", ["line 1", "no_such_module"]),
        ("from configs import no_such_name\n", ["installed packages", "no_such_name"]),
        ("x = 1\n", ["must define get_config()"]),
        ("\n\nx = 1 / 0\n", ["line 3", "ZeroDivisionError"]),
        ("def get_config():\n    return {}['a']\n", ["line 2", "KeyError: 'a'"]),
        ("def get_config():\n    raise TypeError('not\\nso')\n", ["line 2", "TypeError: not so"]),
        ("def get_config():\n    open('/no/such/file')\n", ["line 2", "FileNotFoundError"]),
        ("def get_config():\n    pass\n", ["must return a ConfigDict, got NoneType"]),
        ("def get_config(size):\n    pass\n", ["TypeError", "size"]),
        (
            "from hne_tf.training.config import default\n"
            "def get_config():\n"
            "    config = default()\n"
            "    config.training.epochs = 'many'\n",
            ["line 4", "TypeError"],
        ),
    ],
)
def test_what_is_wrong_in_a_config_file_is_one_line(capsys, tmp_path, text, words):
    path = tmp_path / "config.py"
    path.write_text(text)
    main = lambda values, rest: pytest.fail("main was called")  # noqa: E731
    assert run(main, f"--config={path}", "--config.seed=1") == 2
    line = told(capsys)
    for word in [str(path), *words]:
        assert word in line


def test_a_config_file_may_take_an_argument(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "import ml_collections\n"
        "def get_config(name):\n"
        "    return ml_collections.ConfigDict({'name': name})\n"
    )
    seen = []
    assert run(lambda values, rest: seen.append(values.config.name), f"--config={path}:a:b") == 0
    assert seen == ["a:b"]


@pytest.mark.parametrize("field", ["config.trainin = config.training", "config.data.nmae = 'x'",
                                   "del config.training"])  # fmt: skip
def test_settings_of_other_fields_are_refused(assert_refused, tmp_path, field):
    path = tmp_path / "config.py"
    path.write_text(
        "from hne_tf.training.config import default\n"
        f"def get_config():\n    config = default()\n    {field}\n    return config\n"
    )
    word = {"config.t": "trainin.", "config.d": "data.nmae", "del conf": "none of the name"}
    assert_refused(train, [f"--config={path}", f"--workdir={tmp_path / 'run'}"], word[field[:8]])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["file", "file/run", "x" * 300, "run"])
def test_an_impossible_workdir_is_one_line(assert_refused, tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").touch()
    assert_refused(train, [*TINY, f"--workdir={tmp_path / place}"], str(tmp_path))


def test_a_file_in_the_way_of_any_binary_is_one_line(assert_refused, trained_workdir, tmp_path):
    file = tmp_path / "file"
    file.touch()
    config = f"--config={ROOT / 'configs/sweeps/objectives_digits.py'}"
    assert_refused(sweep, [config, f"--root={file / 'root'}"], "Not a directory", str(file))
    copied = shutil.copytree(trained_workdir.path, tmp_path / "run")
    (copied / "evaluation.json").unlink(missing_ok=True)
    (copied / "evaluation.json").mkdir()
    run = f"--workdir={copied}"
    assert_refused(evaluate, [run], "Is a directory", "evaluation.json")
    assert_refused(export, [run, f"--model_base_path={file / 'model'}"], str(file))
    assert_refused(convert_tflite, [run, f"--output={file / 'a.tflite'}"], str(file))


def limited(bytes_):
    """Makes every file end at a size, as a full disk does; for `preexec_fn`."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, resource.RLIM_INFINITY))

    return limit


@pytest.mark.slow
def test_after_a_full_disk_at_the_first_checkpoint_the_same_command_goes_on(run_binary, tmp_path):
    arguments = [*TINY, f"--workdir={tmp_path / 'run'}"]
    for size in (16, 5000):
        process = subprocess.run(
            [sys.executable, "-m", "hne_tf.bin.train", *arguments],
            preexec_fn=limited(size),
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert process.returncode == 1, process.stderr
        (line,) = process.stderr.splitlines()
        assert line.startswith("hne-train: ")
        assert "writable" in line
    code, lines, _ = run_binary(train, *arguments)
    assert code == 0
    assert "trained" in lines[-1]
