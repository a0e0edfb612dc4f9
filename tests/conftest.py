import contextlib
import gc
import os
import pathlib
import re
import signal

from hne_tf import hardware

# Before TensorFlow is loaded: quiet, fast in batches, and two CPU devices to distribute over.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault(hardware.ONEDNN_VARIABLE, "1")

import pytest
import tensorflow as tf
from hypothesis import settings
from PIL import Image

from hne_tf.training.config import default
from hne_tf.training.loop import train
from hne_tf.training.workdir import Workdir

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

# `--hypothesis-profile=fuzz` looks longer; a busy machine must not fail a test.
settings.register_profile("suite", max_examples=100, deadline=None)
settings.register_profile("fuzz", max_examples=10_000, deadline=None)
settings.load_profile("suite")

# Of one input: a picture may have a million pixels in the tests, of 4 bytes each.
MOST_MIB = 64
MOST_SECONDS = 10


def pytest_collection_finish():
    """Has the garbage collector pass over the libraries, which stay."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def tiny_config():
    """Makes the settings of a run of a few seconds: digits, three blocks, N = 4."""

    tiny = {"unit": "basic", "widths": (4, 8, 8), "units": (1, 1, 1), "strides": (1, 2, 1)}
    tiny["stem_width"] = 4

    def make(**overrides):
        config = default()
        config.update_from_flattened_dict(
            {
                "data.train_examples": 320,
                "model.branching": (1, 2, 2),
                **{
                    f"model.{network}.{name}": value
                    for network in ("resnet", "multi_exit")
                    for name, value in tiny.items()
                },
                "optimizer.warmup_epochs": 0.5,
                "training.epochs": 3.0,
                "training.batch_size": 32,
                "training.steps_per_call": 4,
                **{name.replace("__", "."): value for name, value in overrides.items()},
            }
        )
        return config

    return make


@pytest.fixture(scope="session")
def trained_workdir(tiny_config, tmp_path_factory):
    """A finished tiny run that tests only read."""
    workdir = Workdir(tmp_path_factory.mktemp("runs") / "tiny")
    train(tiny_config(), workdir, report=lambda line: None)
    return workdir


@pytest.fixture(scope="session")
def turned():
    """What a camera stores of a picture: its pixels turned, and the EXIF that says how."""
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }

    def turn(picture, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        if orientation in inverse:
            picture = picture.transpose(inverse[orientation])
        return picture, exif

    return turn


@pytest.fixture(scope="session")
def bounded():
    """Makes a context that bounds the memory and processor time of one untrusted input."""

    def exhausted(number, frame):
        raise AssertionError(f"an input must take at most {MOST_SECONDS} s of processor time")

    @contextlib.contextmanager
    def cost():
        # Linux then forgets the peak so far.
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = peak_mib()
        previous = signal.signal(signal.SIGPROF, exhausted)
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, previous)
        assert peak_mib() - before < MOST_MIB

    return cost


def peak_mib():
    """The most memory that this process has had."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


@pytest.fixture
def run_binary(capsys):
    """Runs a binary in this process: its exit code, and its lines on both outputs."""

    def run(binary, *arguments):
        capsys.readouterr()
        code = binary.run(list(arguments))
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err.splitlines()

    return run


@pytest.fixture
def assert_refused(run_binary):
    """Asserts that a binary refuses its arguments in one line that holds some words."""

    def refused(binary, arguments, *words):
        code, _, errors = run_binary(binary, *arguments)
        assert code != 0
        assert len(errors) == 1, errors
        for word in words:
            assert word in errors[0]

    return refused
