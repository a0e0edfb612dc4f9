"""Runs in processes of their own, which signals, determinism and several devices need."""

import json
import signal
import time

import numpy as np
import pytest
import tensorflow as tf

from hne_tf.bin import app, train
from hne_tf.models import weights
from hne_tf.training import checkpoints, trained
from hne_tf.training.workdir import Workdir
from tests.hne_tf.training.train_process import TrainProcess

pytestmark = pytest.mark.slow

CONFIG_FILE = """
from hne_tf.training.config import default

def get_config():
    config = default()
    config.data.train_examples = 320
    config.data.pad_pixels = 1
    config.model.branching = (2,)
    config.model.resnet.unit = "basic"
    config.model.resnet.widths = (4,)
    config.model.resnet.units = (1,)
    config.model.resnet.strides = (2,)
    config.training.epochs = 15.0
    config.training.batch_size = 16
    config.training.steps_per_call = 3
    config.training.checkpoint_every_epochs = 1.0
    config.training.validate_every_epochs = 5.0
    config.training.deterministic = True
    config.training.ema_momentum = 0.99
    return config
"""
TOTAL = 300
_ADAM = "adversary_optimizer/_variables/"


def tensors(workdir):
    """All tensors of the newest checkpoint by name."""
    path = str(workdir.checkpoints / f"ckpt-{checkpoints.steps(workdir.checkpoints)[0]}")
    reader = tf.train.load_checkpoint(path)
    names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    return {name: reader.get_tensor(name) for name in names}


def losses_of(workdir):
    lines = workdir.metrics_path.read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def arguments(tmp_path, name, *overrides):
    config = tmp_path / "config.py"
    config.write_text(CONFIG_FILE)
    return [f"--config={config}", f"--workdir={tmp_path / name}", *overrides]


@pytest.fixture
def start(tmp_path):
    """Starts a run; whatever is left of it afterwards is killed."""
    processes = []

    def start_run(name, *overrides):
        folder = tmp_path / f"process {len(processes)}"
        processes.append(TrainProcess(arguments(tmp_path, name, *overrides), folder))
        return processes[-1]

    yield start_run
    for process in processes:
        process.kill()


def wait_for_step(process, workdir, step):
    while process.running:
        if workdir.metrics_path.exists() and len(workdir.metrics_path.read_text().splitlines()) > (
            step // 3
        ):
            return
        time.sleep(0.02)
    raise AssertionError(process.ends())


def test_killed_and_stopped_runs_end_with_the_weights_of_an_uninterrupted_one(start, tmp_path):
    whole = start("whole")
    interrupted = Workdir(tmp_path / "interrupted")
    killed = start("interrupted")
    wait_for_step(killed, interrupted, 30)
    killed.kill()
    assert 0 < max(checkpoints.steps(interrupted.checkpoints)) < TOTAL
    stopped = start("interrupted")
    wait_for_step(stopped, interrupted, 60)
    stopped.signal(signal.SIGTERM)
    code, output, errors = stopped.ends()
    assert code == app.EXIT_INTERRUPTED, errors
    assert any("resumed at step" in line for line in output)
    assert "the same command goes on from there" in errors[-1]
    code, output, errors = start("interrupted").ends()
    assert code == 0, errors
    assert any(f"trained {TOTAL} steps" in line for line in output)
    code, _, errors = whole.ends()
    assert code == 0, errors
    one, other = tensors(interrupted), tensors(Workdir(tmp_path / "whole"))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_replicas_lose_what_one_loses_if_their_norms_are_synchronised(start, tmp_path):
    parts = ["--config.training.accumulate_steps=2", "--config.training.ema_momentum=0.9"]
    overrides = {"whole": ["--config.training.ema_momentum=0"], "in parts": parts}
    short = ["--config.training.epochs=1", "--config.optimizer.warmup_epochs=0.1"]
    short.append("--config.training.steps_per_call=1")
    two_devices = [*short, "--config.distribution.logical_devices=2"]
    processes = [start(f"two {kind}", *two_devices, *flags) for kind, flags in overrides.items()]
    for kind, flags in overrides.items():
        assert train.run(arguments(tmp_path, f"one {kind}", *short, *flags)) == 0
    for process in processes:
        code, _, errors = process.ends()
        assert code == 0, errors
    losses = {
        kind: [losses_of(Workdir(tmp_path / f"{name} {kind}")) for name in ("one", "two")]
        for kind in overrides
    }
    for one, two in losses.values():
        assert len(one) == 20
        np.testing.assert_allclose(one, two, rtol=1e-4)
    averages = [
        weights.read(trained.restore(Workdir(tmp_path / f"{name} in parts")).model)
        for name in ("one", "two")
    ]
    for name, value in averages[0].items():
        np.testing.assert_allclose(averages[1][name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    # The checks mean something only if norms that see fewer images fail them.
    assert not np.allclose(losses["whole"][0], losses["in parts"][0], rtol=3e-4)


def test_a_discriminator_is_mirrored_over_replicas(start, tmp_path):
    overrides = [
        "--config.training.epochs=1",
        "--config.distribution.logical_devices=2",
        "--config.objective.name=dice",
    ]
    forms = ("branched", "grouped")
    for process in [start(f, *overrides, f"--config.training.factory={f}") for f in forms]:
        code, _, errors = process.ends()
        assert code == 0, errors
    for form in forms:
        assert np.isfinite(losses_of(Workdir(tmp_path / form))).all()
        found = tensors(Workdir(tmp_path / form))
        moments = [each for name, each in found.items() if name.startswith(_ADAM) and each.ndim]
        # Two of the kernels and biases of three layers.
        assert len(moments) == 12
        assert all(np.abs(each).max() > 0 for each in moments)
