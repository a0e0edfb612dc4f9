import os
import platform
import subprocess
import sys

import pytest

from hne_tf import hardware


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6})
        assert hardware.cores() == 3
    # As on macOS.
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert hardware.cores() == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert hardware.cores() == 1


@pytest.mark.parametrize(
    ("given", "preferred", "expected"),
    [
        (None, True, "1"),
        (None, False, "0"),
        (None, None, None),
        ("0", True, "0"),
        ("1", False, "1"),
    ],
)
def test_onednn_is_chosen_unless_the_user_has_chosen(monkeypatch, given, preferred, expected):
    # Set first, so that the variable is put back whatever it was.
    monkeypatch.setenv(hardware.ONEDNN_VARIABLE, "0")
    if given is None:
        monkeypatch.delenv(hardware.ONEDNN_VARIABLE)
    else:
        monkeypatch.setenv(hardware.ONEDNN_VARIABLE, given)
    hardware.prefer_onednn(preferred)
    assert os.environ.get(hardware.ONEDNN_VARIABLE) == expected


# Pages that are new to a process which frees 64 MiB and allocates them again.
FAULTS = """
import ctypes, resource
from hne_tf import hardware
hardware.keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
def again():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    place = ctypes.c_void_p(library.malloc(2**26))
    library.memset(place, 1, 2**26)
    library.free(place)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
again()
print(again())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
@pytest.mark.parametrize(
    ("environment", "kept"),
    [({}, True), ({"MALLOC_ARENA_MAX": "2"}, False), ({"GLIBC_TUNABLES": ""}, False)],
)
def test_freed_memory_is_kept_unless_the_user_has_chosen(environment, kept):
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")
    }
    inherited.pop("GLIBC_TUNABLES", None)
    output = subprocess.run(
        [sys.executable, "-c", FAULTS],
        capture_output=True,
        text=True,
        env={**inherited, **environment},
    )
    assert output.returncode == 0, output.stderr
    # 32 of the largest pages that there are, 16,384 of the usual ones.
    assert int(output.stdout) < 16 if kept else int(output.stdout) >= 32


def test_tensorflow_tells_what_it_computes_with():
    # What tests/conftest.py chooses, or the environment before it.
    assert hardware.has_onednn() == (os.environ[hardware.ONEDNN_VARIABLE] == "1")


def test_commands_load_keras_without_what_they_do_not_use():
    program = """
import sys
from hne_tf import hardware
hardware.load_keras()
print({"keras", "sklearn", "matplotlib", "jax"} & set(sys.modules))
import sklearn, matplotlib
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert output.stdout == "{'keras'}\n", output.stderr
    assert output.returncode == 0, output.stderr


def test_a_backend_that_is_not_there_is_told_in_one_line():
    program = "from hne_tf import hardware\nhardware.load_keras()"
    output = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "KERAS_BACKEND": "nonsense"},
        capture_output=True,
        text=True,
    )
    assert "InputError: KERAS_BACKEND must name" in output.stderr.splitlines()[-1]
    assert "got nonsense" in output.stderr.splitlines()[-1]
