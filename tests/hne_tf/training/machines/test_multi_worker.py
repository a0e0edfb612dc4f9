"""Two workers in processes of their own, on ports of 127.0.0.1."""

import contextlib
import json
import signal
import socket
import time

import numpy as np
import pytest

from hne_tf.training import checkpoints, loop
from hne_tf.training.config import default
from hne_tf.training.trained import restore
from hne_tf.training.workdir import Workdir
from tests.hne_tf.training.train_process import TrainProcess

pytestmark = pytest.mark.slow

SETTINGS = {
    "data.train_examples": 320,
    "data.pad_pixels": 1,
    "model.branching": (2,),
    "model.resnet.unit": "basic",
    "model.resnet.widths": (8,),
    "model.resnet.units": (1,),
    "model.resnet.strides": (2,),
    # Small enough that rounding does not grow into other losses within the run.
    "optimizer.learning_rate": 0.02,
    "optimizer.warmup_epochs": 0.1,
    # Enough to stop or kill the workers several times on the way.
    "training.epochs": 20.0,
    "training.batch_size": 32,
    # So that metrics.jsonl has the loss of every step.
    "training.steps_per_call": 1,
    "training.checkpoint_every_epochs": 0.5,
    "training.validate_every_epochs": 10.0,
    "distribution.synchronized_norm": "on",
}
TOTAL = 200
INTERRUPTED = 138

CONFIG_FILE = f"""
from hne_tf.training.config import default

def get_config():
    config = default()
    config.update_from_flattened_dict({SETTINGS!r})
    return config
"""


def free_addresses(count):
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


@pytest.fixture
def start(tmp_path):
    """Starts a worker per workdir; whatever is left of them afterwards is killed."""
    config = tmp_path / "config.py"
    config.write_text(CONFIG_FILE)
    processes = []

    def start_workers(*workdirs, flags=()):
        cluster = {"worker": free_addresses(len(workdirs))}
        for index, workdir in enumerate(workdirs):
            task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
            arguments = [f"--config={config}", f"--workdir={workdir}", *flags]
            folder = tmp_path / f"process {len(processes)}"
            processes.append(TrainProcess(arguments, folder, {"TF_CONFIG": json.dumps(task)}))
        return processes[-len(workdirs) :]

    yield start_workers
    for process in processes:
        process.kill()


def ends(process, code):
    """Asserts that a worker ends by itself with a code; its lines on both outputs."""
    ended, output, errors = process.ends()
    assert ended == code, output + errors
    return output, errors


def records(workdir):
    if not workdir.metrics_path.exists():
        return []
    # The last line may still be under way.
    return [json.loads(line) for line in workdir.metrics_path.read_text().split("\n")[:-1]]


def wait_for_step(workdir, step, workers):
    while not any(record["step"] >= step for record in records(workdir)):
        assert all(worker.running for worker in workers)
        time.sleep(0.02)


def weights(workdir):
    """The newest weights by name."""
    return {weight.path: weight.numpy() for weight in restore(workdir).model.weights}


def test_two_workers_lose_what_one_loses_and_survive_a_stop_and_deaths(start, tmp_path):
    alone, together = Workdir(tmp_path / "alone"), Workdir(tmp_path / "together")
    chief, other = start(together.path, together.path)
    wait_for_step(together, 5, (chief, other))
    other.signal(signal.SIGTERM)
    for worker in (chief, other):
        _, errors = ends(worker, INTERRUPTED)
        assert len(errors) == 1, errors
        assert "the same command goes on from there" in errors[0]
    stopped = records(together)[-1]["step"]
    assert f"stopped at step {stopped} of {TOTAL}" in errors[0]
    assert stopped == checkpoints.steps(together.checkpoints)[0]
    # Only the chief writes.
    assert len(list(together.events.iterdir())) == 1

    saved = stopped
    for victim in (1, 0):
        workers = start(together.path, together.path)
        wait_for_step(together, saved + 11, workers)
        workers[victim].kill()
        _, errors = ends(workers[1 - victim], INTERRUPTED)
        assert len(errors) == 1, errors
        assert "one of the 2 workers is lost" in errors[0]
        before, saved = saved, checkpoints.steps(together.checkpoints)[0]
        assert before < saved < TOTAL

    for worker in start(together.path, together.path):
        output, errors = ends(worker, 0)
        assert not errors
        assert f"resumed at step {saved} of {TOTAL}" in output
        assert output[-1] == f"trained {TOTAL} steps; the run is in {together.path}"

    config = default()
    config.update_from_flattened_dict(SETTINGS)
    loop.train(config, alone, report=lambda line: None)
    one, two = ([record["loss"] for record in records(run)] for run in (alone, together))
    assert [record["step"] for record in records(together)] == list(range(1, TOTAL + 1))
    np.testing.assert_allclose(two[:100], one[:100], rtol=1e-4)
    # Rounding grows with the steps.
    np.testing.assert_allclose(two, one, rtol=2e-3)
    expected = weights(alone)
    for name, value in weights(together).items():
        np.testing.assert_allclose(value, expected[name], rtol=0.01, atol=0.02, err_msg=name)


def test_workers_must_share_the_workdir(start, tmp_path):
    for index, worker in enumerate(start(tmp_path / "here", tmp_path / "there")):
        _, errors = ends(worker, 1)
        assert len(errors) == 1, errors
        assert "all workers must see the same --workdir" in errors[0]
        assert f"worker {index} found {['step 0', 'nothing'][index]}" in errors[0]


def test_workers_do_not_touch_a_run_of_other_settings(start, tmp_path):
    workdir = Workdir(tmp_path / "run")
    config = default()
    config.update_from_flattened_dict(SETTINGS)
    workdir.claim(config, restart=False)
    before = workdir.config_path.read_bytes(), sorted(workdir.path.rglob("*"))
    chief, other = start(workdir.path, workdir.path, flags=["--config.seed=1"])
    _, errors = ends(chief, 1)
    assert len(errors) == 1, errors
    assert "seed: 0 there, 1 here" in errors[0]
    _, errors = ends(other, INTERRUPTED)
    assert len(errors) == 1, errors
    assert "one of the 2 workers is lost" in errors[0]
    assert (workdir.config_path.read_bytes(), sorted(workdir.path.rglob("*"))) == before
