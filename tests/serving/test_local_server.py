"""The `hne-serve` binary: a real process, and bad flags in this one."""

import json
import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from hne_tf import hardware
from hne_tf.bin import serve
from hne_tf.client.budget_client import ServingClient
from hne_tf.exported.manifest import Manifest
from hne_tf.server import serve as library
from hne_tf.tree import Tree


@pytest.fixture
def process(base_path):
    started = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "hne_tf.bin.serve",
            f"--model_base_path={base_path}",
            "--port=0",
        ],
        cwd=pathlib.Path(serve.__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield started
    started.kill()
    started.wait()
    started.stdout.close()
    started.stderr.close()


def test_a_process_serves_and_stops_on_sigterm(process, images, server):
    line = process.stdout.readline()
    found = re.fullmatch(
        r"hne-serve: embedded Python server, not TF Serving: "
        r"model=digits version=7 address=(127\.0\.0\.1:\d+)\n",
        line,
    )
    assert found, line
    with (
        ServingClient(found[1], "digits") as client,
        ServingClient(server.address, "digits") as other,
    ):
        received = client.predict(images, "ensemble_2")
        expected = other.predict(images, "ensemble_2")
        np.testing.assert_allclose(received["logits"], expected["logits"], rtol=1e-6)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    assert process.stdout.read() == "hne-serve: stopped\n"
    assert process.stderr.read() == ""


@pytest.mark.parametrize(("user", "expected"), [(None, "0"), ("1", "1")])
def test_the_faster_setting_of_onednn_is_taken_unless_the_user_has_set_it(
    tmp_path, manifest_content, monkeypatch, capsys, user, expected
):
    # So that the test's end puts back what was there.
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", user or "")
    if user is None:
        monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    manifest_content["latency"]["onednn"] = False
    path = tmp_path / "digits" / "1" / "assets.extra" / "hne_manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(manifest_content))
    # There is no graph to serve.
    assert serve.run([f"--model_base_path={tmp_path / 'digits'}", "--port=0"]) != 0
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == expected


@pytest.mark.parametrize(("user", "expected"), [(None, "1"), ("3", "3")])
def test_operations_run_side_by_side_where_that_is_faster_unless_the_user_has_set_it(
    tmp_path, manifest_content, monkeypatch, user, expected
):
    # So that the test's end puts back what was there.
    monkeypatch.setenv(hardware.OPERATION_THREADS_VARIABLE, user or "")
    if user is None:
        monkeypatch.delenv(hardware.OPERATION_THREADS_VARIABLE)
    path = tmp_path / "digits" / "1" / "assets.extra" / "hne_manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(manifest_content))
    # There is no graph to serve.
    assert serve.run([f"--model_base_path={tmp_path / 'digits'}", "--port=0"]) != 0
    assert os.environ.get(hardware.OPERATION_THREADS_VARIABLE) == user
    for row in manifest_content["latency"]["measurements"]:
        row["side_by_side"] = True
    path.write_text(json.dumps(manifest_content))
    assert serve.run([f"--model_base_path={tmp_path / 'digits'}", "--port=0"]) != 0
    assert os.environ[hardware.OPERATION_THREADS_VARIABLE] == expected


def test_a_runtime_that_a_version_has_no_file_for_is_refused(base_path, tmp_path, capsys):
    version = shutil.copytree(base_path / "7", tmp_path / "digits" / "7")
    (version / "assets.extra").mkdir()
    (version / "assets.extra/hne_manifest.json").write_text(
        Manifest.of_tree(Tree((2,)), "digits", ("a", "b"), (8, 8, 1)).to_text()
    )
    arguments = [f"--model_base_path={version.parent}", "--port=0", "--runtime=litert"]
    _check_refused(capsys, arguments, "must hold assets.extra/model.tflite")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_stop_it_and_handlers_are_put_back(base_path, monkeypatch, number):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    lines = []

    def announce(line, flush=False):
        lines.append(line)
        if len(lines) == 1:
            assert flush
            signal.raise_signal(number)

    monkeypatch.setattr("builtins.print", announce)
    code = serve.run([f"--model_base_path={base_path}", "--port=0", "--model_name=other"])
    assert code == 0
    assert "model=other" in lines[0]
    assert {n: signal.getsignal(n) for n in before} == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--model_base_path"),
        (["--model_base_path=absent"], "must be a folder"),
        (["--model_base_path=.", "--port=70000"], "70000"),
        (["--model_base_path=.", "--port=http"], "http"),
        (["--model_base_path=.", "extra"], "'extra'"),
        (["--unknown"], "unknown"),
        (["--model_base_path=.", "--runtime=onnx"], "onnx"),
    ],
)
def test_bad_flags_get_one_line(capsys, arguments, reason):
    _check_refused(capsys, arguments, reason)


def test_a_folder_without_versions_gets_one_line(capsys, tmp_path):
    _check_refused(capsys, [f"--model_base_path={tmp_path}"], "folder per version")


def test_help_lists_the_flags(capsys):
    assert serve.run(["--help"]) == 0
    assert "--model_base_path" in capsys.readouterr().out


def _check_refused(capsys, arguments, reason):
    assert serve.run(arguments) != 0
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("hne-serve: ")
    assert reason in line


def test_a_library_s_server_leaves_logging_as_it_was(base_path, caplog):
    logger = logging.getLogger("grpc._common")
    before = logger.level, list(logger.filters)
    with library.serve(base_path, report=lambda line: None):
        with library.serve(base_path, report=lambda line: None):
            logger.error("a traceback")
        logger.error("a traceback")
        assert caplog.messages == []
    assert (logger.level, logger.filters) == before
    logger.error("of another server")
    assert caplog.messages == ["of another server"]
