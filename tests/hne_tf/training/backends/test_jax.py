"""Training on JAX in a process of its own, against TensorFlow's in this one."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from hne_tf.bin import app, export
from hne_tf.data import load
from hne_tf.errors import InputError
from hne_tf.exported.manifest import read_manifest
from hne_tf.models import weights
from hne_tf.training import checkpoints, loop, trained
from hne_tf.training.run import TrainingRun
from hne_tf.training.schedule import Schedule
from hne_tf.training.workdir import Workdir

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed"),
]

ROOT = pathlib.Path(__file__).parents[4]
STEPS = 20

LOSSES = """
import json, sys
import numpy as np
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.training.backends import on_jax
from hne_tf.training.config import from_json
from hne_tf.training.machines.cluster import Cluster
from hne_tf.training.schedule import Schedule

folder = sys.argv[1]
given = json.load(open(f"{folder}/given.json"))
on_jax.prepare(from_json(given["configs"][-1]))
found = {}
for name, config in zip(given["names"], given["configs"]):
    config = from_json(config)
    run = on_jax.run(
        config,
        ImageSpec(**given["images"]),
        Schedule.of(config, 320),
        on_jax.devices_of(config, Cluster()),
    )
    run._loops = name == "grouped"
    weights.load(run.model, weights.read_npz(f"{folder}/weights.npz"))
    if run._adversary:
        values = np.load(f"{folder}/adversary.npz")
        for place, variable in enumerate(run._adversary.trainable_variables):
            variable.assign(values[f"arr_{place}"])
    run._state = run._read()
    batches = np.load(f"{folder}/batches.npz")
    pairs = iter(list(zip(batches["images"], batches["labels"])))
    found[name] = [run.take_steps(pairs, 1) for _ in range(len(batches["labels"]))]
json.dump(found, open(f"{folder}/found.json", "w"))
"""

WITHOUT_TENSORFLOW = """
import importlib.abc, json, signal, sys

class Hidden(importlib.abc.MetaPathFinder):
    names = ("tensorflow", "tensorflow_datasets", "tensorflow_model_optimization", "tf_keras")

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
from hne_tf.bin import train
from hne_tf.training.backends.jax_run import JaxRun

flags, take_steps = sys.argv[1:-1], JaxRun.take_steps
codes = [train.run([*flags, f"--workdir={sys.argv[-1]}/whole"])]
calls = iter(range(100))

def stopped(*arguments):
    if next(calls) == 3:
        signal.raise_signal(signal.SIGTERM)
    return take_steps(*arguments)

JaxRun.take_steps = stopped
resumed = [*flags, f"--workdir={sys.argv[-1]}/resumed"]
codes += [train.run(resumed), train.run(resumed)]
print(json.dumps(codes))
"""


def on_jax(script, folder, *arguments, **environment):
    """Runs a script under JAX; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "KERAS_BACKEND": "jax",
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            # Compiling takes longer here than computing.
            "XLA_FLAGS": "--xla_backend_optimization_level=0 "
            "--xla_llvm_disable_expensive_passes=true",
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def small(tiny_config, **settings):
    return tiny_config(
        model__branching=(1, 2),
        model__resnet__unit="bottleneck",
        model__resnet__widths=(4, 8),
        model__resnet__units=(1, 1),
        model__resnet__strides=(1, 2),
        **settings,
    )


def test_losses_are_those_of_tensorflow_on_the_same_batches(tiny_config, tmp_path):
    # A ramp and a warm-up, so that both count steps alike.
    settings = {
        "objective__hierarchical__ramp_epochs": 1.0,
        "optimizer__warmup_epochs": 0.5,
    }
    forms = {
        "branched": small(tiny_config, training__factory="branched", **settings),
        "against each other": small(
            tiny_config,
            training__factory="branched",
            objective__name="dice",
            objective__dice__weight=1.0,
            training__accumulate_steps=2,
        ),
        "grouped": small(
            tiny_config,
            training__factory="grouped",
            distribution__logical_devices=2,
            **settings,
        ),
    }
    data_set = load(forms["branched"].data)
    batches = list(
        data_set.train_batches(
            batch_size=32, start_step=0, total_steps=STEPS, seed=1
        ).as_numpy_iterator()
    )
    images, labels = (np.stack(part) for part in zip(*batches, strict=True))
    np.savez(tmp_path / "batches.npz", images=images, labels=labels)
    expected, initial = {}, None
    for name, config in forms.items():
        run = TrainingRun(
            config, data_set.spec, Schedule.of(config, 320), tf.distribute.get_strategy()
        )
        initial = initial or weights.read(run.model)
        weights.load(run.model, initial)
        if run._adversary:
            values = [variable.numpy() for variable in run._adversary.trainable_variables]
            np.savez(tmp_path / "adversary.npz", *values)
        pairs = iter(tf.data.Dataset.from_tensor_slices((images, labels)))
        expected[name] = [run.take_steps(pairs, 1) for _ in range(STEPS)]
    weights.save_npz(tmp_path / "weights.npz", initial)
    given = {
        "names": list(forms),
        "configs": [config.to_dict() for config in forms.values()],
        "images": vars(data_set.spec),
    }
    (tmp_path / "given.json").write_text(json.dumps(given))
    on_jax(LOSSES, tmp_path, tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    for name, records in expected.items():
        losses = [record["loss"] for record in records]
        assert len(set(losses)) == STEPS
        got = [record["loss"] for record in found[name]]
        np.testing.assert_allclose(got, losses, rtol=1e-3, err_msg=name)
        hits = [record["accuracy_2"] for record in records]
        np.testing.assert_allclose(
            [record["accuracy_2"] for record in found[name]], hits, atol=1.1 / 32, err_msg=name
        )


@pytest.fixture(scope="module")
def runs(tiny_config, tmp_path_factory):
    """A run to its end and one that was stopped, without TensorFlow; settings and folder."""
    folder = tmp_path_factory.mktemp("jax")
    digits = load(tiny_config().data)
    arrays = {}
    for split in ("train", "validation", "test"):
        count = {"train": 96, "validation": 40, "test": 40}[split]
        images, labels = next(iter(digits.evaluation_batches(split, count)))
        arrays |= {f"{split}_images": images.numpy(), f"{split}_labels": labels.numpy()}
    np.savez(folder / "digits.npz", **arrays)
    config = small(
        tiny_config,
        data__name="npz",
        data__data_dir=str(folder / "digits.npz"),
        data__train_examples=0,
        data__pad_pixels=1,
        data__flip=True,
        training__epochs=8.0,
        training__batch_size=16,
        training__ema_momentum=0.9,
        training__factory="grouped",
        training__deterministic=True,
    )
    (folder / "config.py").write_text(
        "import ml_collections\n\n"
        f"def get_config():\n    return ml_collections.ConfigDict({config.to_dict()!r})\n"
    )
    printed = on_jax(WITHOUT_TENSORFLOW, folder, f"--config={folder / 'config.py'}", folder)
    return config, folder, printed


def arrays_of(workdir):
    step = checkpoints.steps(workdir.checkpoints)[0]
    with np.load(workdir.checkpoints / f"ckpt-{step}.npz") as file:
        return dict(file)


def test_a_run_without_tensorflow_stops_and_goes_on_to_the_same_weights(runs):
    _, folder, printed = runs
    assert json.loads(printed.splitlines()[-1]) == [0, app.EXIT_INTERRUPTED, 0]
    assert "resumed at step" in printed
    whole, resumed = (Workdir(folder / name) for name in ("whole", "resumed"))
    expected = arrays_of(whole)
    assert {"model", "average", "optimizer"} == {name.split("/")[0] for name in expected}
    for name, value in arrays_of(resumed).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    of_whole, of_resumed = (
        [json.loads(line) for line in each.metrics_path.read_text().splitlines()]
        for each in (whole, resumed)
    )
    assert [each["step"] for each in of_resumed if "validation_accuracy_2" in each] == [
        each["step"] for each in of_whole if "validation_accuracy_2" in each
    ]
    assert of_whole[-1]["loss"] == of_resumed[-1]["loss"] < of_whole[0]["loss"]
    assert of_whole[-1].keys() >= {"epoch", "accuracy_1", "images_per_s", "learning_rate"}


def test_tensorflow_evaluates_and_exports_it(runs, tmp_path):
    _, folder, _ = runs
    workdir = Workdir(folder / "whole")
    lines = []
    run = trained.restore(workdir, report=lines.append)
    assert (run.step, run.total_steps, lines) == (48, 48, [])
    kept = arrays_of(workdir)
    for name, value in weights.read(run.model).items():
        np.testing.assert_array_equal(value, kept[f"average/{name}"], err_msg=name)
    record = json.loads(workdir.metrics_path.read_text().splitlines()[-1])
    measured = run.evaluate("validation")["sizes"]
    for row in measured:
        assert row["accuracy"] == pytest.approx(record[f"validation_accuracy_{row['size']}"])
    code = export.run([f"--workdir={workdir.path}", f"--model_base_path={tmp_path / 'm'}"])
    assert code == 0
    assert read_manifest(tmp_path / "m/1").sizes == (1, 2)


def test_a_run_goes_on_under_its_backend_only(runs, tmp_path):
    config, folder, _ = runs
    workdir = Workdir(shutil.copytree(folder / "whole", tmp_path / "run"))
    with pytest.raises(InputError, match=r"began with, KERAS_BACKEND=jax .* got .*=tensorflow"):
        loop.train(config, workdir, report=lambda line: None)
