import os

from hne_tf import hardware

# Before TensorFlow is loaded: quiet, fast in batches, and two CPU devices to distribute over.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault(hardware.ONEDNN_VARIABLE, "1")

import pytest
import tensorflow as tf

from hne_tf.training.config import default
from hne_tf.training.loop import train
from hne_tf.training.workdir import Workdir

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(scope="session")
def tiny_config():
    """Makes the settings of a run of a few seconds: digits, three blocks, N = 4."""

    def make(**overrides):
        config = default()
        config.update_from_flattened_dict(
            {
                "data.train_examples": 320,
                "model.branching": (1, 2, 2),
                "model.unit": "basic",
                "model.widths": (4, 8, 8),
                "model.units": (1, 1, 1),
                "model.strides": (1, 2, 1),
                "model.stem_width": 4,
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
