import json
import math
import signal
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf

from hne_tf.data import load
from hne_tf.errors import InputError, InterruptedRunError
from hne_tf.evaluation.evaluation import inference
from hne_tf.evaluation.measuring import measure
from hne_tf.metrics import EnsembleAccuracy
from hne_tf.models import weights
from hne_tf.training import build, checkpoints, loop, optimizer, trained
from hne_tf.training import run as training_run
from hne_tf.training.schedule import Schedule
from hne_tf.training.workdir import Workdir


def run_to_end(config, path):
    workdir = Workdir(path)
    reports = []
    loop.train(config, workdir, report=reports.append)
    return workdir, reports


def records(workdir):
    return [json.loads(line) for line in workdir.metrics_path.read_text().splitlines()]


def tensors(workdir):
    """All tensors of the newest checkpoint by name."""
    path = str(workdir.checkpoints / f"ckpt-{checkpoints.steps(workdir.checkpoints)[0]}")
    reader = tf.train.load_checkpoint(path)
    names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    return {name: reader.get_tensor(name) for name in names}


def assert_same_tensors(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        if tolerance:
            np.testing.assert_allclose(one[name], other[name], err_msg=name, **tolerance)
        else:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_run_learns_and_records_it(trained_workdir):
    log = records(trained_workdir)
    assert log[-1]["step"] == 30
    assert log[-1]["epoch"] == pytest.approx(3.0)
    assert log[-1]["loss"] < log[0]["loss"]
    assert log[-1]["accuracy_4"] > log[0]["accuracy_4"]
    assert {"accuracy_1", "accuracy_2", "images_per_s", "learning_rate"} <= log[0].keys()
    assert [r["step"] for r in log if "validation_accuracy_4" in r] == [10, 20, 30]
    assert list(trained_workdir.events.iterdir())


def test_several_steps_per_call_change_nothing(tiny_config, trained_workdir, tmp_path):
    workdir, _ = run_to_end(tiny_config(training__steps_per_call=1), tmp_path / "run")
    assert_same_tensors(tensors(workdir), tensors(trained_workdir), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_fit_takes_the_same_steps_as_the_loop(tiny_config, tmp_path):
    config = tiny_config(
        training__epochs=0.5, optimizer__warmup_epochs=0.1, objective__hierarchical__ramp_epochs=0.3
    )
    workdir, _ = run_to_end(config, tmp_path / "run")
    data_set = load(config.data)
    schedule = Schedule.of(config, data_set.examples("train"))
    keras.utils.set_random_seed(config.seed)
    model = build.ensemble(config, build.training_layers(config), data_set.spec)
    sgd = optimizer.optimizer(config, schedule)
    objective = build.objective(config, schedule.steps_per_epoch)
    model.compile(optimizer=sgd, loss=objective)
    batches = data_set.train_batches(
        batch_size=32, start_step=0, total_steps=schedule.total, seed=config.seed
    )
    model.fit(batches, epochs=1, verbose=0)
    restored = build.ensemble(config, build.training_layers(config), data_set.spec)
    checkpoints.restore_newest(
        tf.train.Checkpoint(model=restored), workdir.checkpoints, print, partial=True
    )
    for mine, theirs in zip(restored.weights, model.weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), atol=1e-4, err_msg=mine.path)


@pytest.mark.slow
def test_bfloat16_learns_as_float32_does(tiny_config, trained_workdir, tmp_path):
    workdir, _ = run_to_end(tiny_config(training__precision="bfloat16"), tmp_path / "run")
    assert {value.dtype for value in tensors(workdir).values()} == {
        value.dtype for value in tensors(trained_workdir).values()
    }
    rounded, exact = (records(each)[-1]["loss"] for each in (workdir, trained_workdir))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.1)


@pytest.mark.slow
def test_parts_of_a_batch_add_up_to_a_step_on_the_whole(tiny_config):
    # All parts have the same images, so that their norms see what the whole
    # batch's do, and labels of their own.
    data_set = load(tiny_config().data)
    images, _ = next(iter(data_set.evaluation_batches("validation", 8)))
    labels = np.random.default_rng(0).integers(0, 10, 32).astype(np.int32)
    batch = tf.data.Dataset.from_tensors((np.repeat(images, 4, axis=0), labels)).repeat()
    results = []
    for parts in (1, 4):
        config = tiny_config(training__accumulate_steps=parts, optimizer__warmup_epochs=0.0)
        keras.utils.set_random_seed(0)
        schedule = Schedule.of(config, 320)
        run = training_run.TrainingRun(
            config, data_set.spec, schedule, tf.distribute.get_strategy()
        )
        before = weights.read(run.model)
        record = run.take_steps(iter(batch), 5)
        results.append(({"loss": record["loss"]}, weights.read(run.model)))
    (loss, whole), (loss_of_parts, of_parts) = results
    assert loss_of_parts == pytest.approx(loss, rel=1e-4)
    for name, value in whole.items():
        # The parts move the statistics four times a step, the whole batch once.
        if "moving" not in name:
            np.testing.assert_allclose(of_parts[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
            assert np.abs(value - before[name]).max() > 1e-4, f"{name} stood still"


@pytest.mark.parametrize("parts", [0, 3, 64])
def test_the_parts_must_divide_the_batch(tiny_config, tmp_path, parts):
    with pytest.raises(InputError, match=f"divide the 32 images .*, got {parts}"):
        run_to_end(tiny_config(training__accumulate_steps=parts), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_averaged_weights_are_validated_and_restored(tiny_config, trained_workdir, tmp_path):
    config = tiny_config(training__ema_momentum=0.9)
    workdir, _ = run_to_end(config, tmp_path / "run")
    run = trained.restore(workdir)
    # The average changes nothing in the training itself.
    last = weights.read(trained.restore(trained_workdir).model)
    on_the_way = build.ensemble(config, build.training_layers(config), run.data_set.spec)
    checkpoint = tf.train.Checkpoint(model=on_the_way)
    checkpoints.restore_newest(checkpoint, workdir.checkpoints, print, partial=True)
    for name, value in weights.read(on_the_way).items():
        np.testing.assert_allclose(value, last[name], rtol=1e-3, atol=1e-4, err_msg=name)
    averaged = weights.read(run.model)
    assert any(np.abs(averaged[name] - last[name]).max() > 1e-3 for name in last)
    accuracy = EnsembleAccuracy(run.model.tree.sizes)
    batches = run.data_set.evaluation_batches("validation", 32)
    expected = measure(inference(run.model), batches, [accuracy])
    for name, value in expected.items():
        assert records(workdir)[-1][f"validation_{name}"] == pytest.approx(value)


def test_a_batch_must_divide_by_the_replicas(tiny_config, tmp_path):
    config = tiny_config(distribution__logical_devices=2, training__batch_size=15)
    with pytest.raises(InputError, match="divide by the 2 devices, got 15"):
        run_to_end(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_number_of_devices_is_fixed_once_tensorflow_runs(tiny_config, tmp_path):
    with pytest.raises(InputError, match="before TensorFlow starts"):
        run_to_end(tiny_config(distribution__logical_devices=3), tmp_path / "run")


def test_the_threads_of_an_operation_are_fixed_once_tensorflow_runs(tiny_config, tmp_path):
    assert tf.constant(1) == 1
    threads = tf.config.threading.get_intra_op_parallelism_threads() + 3
    with pytest.raises(InputError, match=f"operation_threads .* before .* starts.* got {threads}"):
        run_to_end(tiny_config(distribution__operation_threads=threads), tmp_path / "run")


def copy_of(workdir, path):
    subprocess.run(["cp", "-r", str(workdir.path), str(path)], check=True)
    return Workdir(path)


def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(
    tiny_config, trained_workdir, tmp_path
):
    workdir = copy_of(trained_workdir, tmp_path / "run")
    newest = workdir.checkpoints / "ckpt-30.index"
    newest.write_bytes(newest.read_bytes()[:10])
    _, reports = run_to_end(tiny_config(), workdir.path)
    assert "ckpt-30 is damaged" in reports[0]
    assert reports[1] == "resumed at step 20 of 30"
    steps = [record["step"] for record in records(workdir)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 30
    assert_same_tensors(tensors(workdir), tensors(trained_workdir), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_stop_at_the_step_of_a_damaged_checkpoint_loses_no_step(
    tiny_config, trained_workdir, tmp_path, monkeypatch
):
    workdir = copy_of(trained_workdir, tmp_path / "run")
    for file in workdir.checkpoints.glob("ckpt-30*"):
        file.unlink()
    (workdir.checkpoints / "ckpt-24.index").write_bytes(b"damaged")
    take_steps = training_run.TrainingRun.take_steps

    def stopped(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return take_steps(*arguments)

    monkeypatch.setattr(training_run.TrainingRun, "take_steps", stopped)
    with pytest.raises(InterruptedRunError, match="step 24 of 30"):
        run_to_end(tiny_config(), workdir.path)
    monkeypatch.undo()
    _, reports = run_to_end(tiny_config(), workdir.path)
    assert reports[0] == "resumed at step 24 of 30"


def test_a_run_that_lost_its_checkpoints_does_not_start_from_scratch(
    tiny_config, trained_workdir, tmp_path
):
    workdir = copy_of(trained_workdir, tmp_path / "run")
    for file in workdir.checkpoints.iterdir():
        file.unlink()
    with pytest.raises(InputError, match="has trained before"):
        run_to_end(tiny_config(), workdir.path)
    assert records(workdir)


def test_a_run_of_other_settings_is_not_touched(tiny_config, trained_workdir):
    before = tensors(trained_workdir)
    with pytest.raises(InputError, match="seed: 0 there, 1 here"):
        run_to_end(tiny_config(seed=1), trained_workdir.path)
    assert_same_tensors(tensors(trained_workdir), before)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_its_checkpoints(tiny_config, tmp_path):
    config = tiny_config(optimizer__learning_rate=1e30, optimizer__warmup_epochs=0.0)
    with pytest.raises(InputError, match="loss must stay finite, got nan by step 4"):
        run_to_end(config, tmp_path / "run")
    assert checkpoints.steps(tmp_path / "run" / "checkpoints") == [0]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("seed", -1, "seed must lie in 0 to 4294967295, got -1"),
        ("seed", 2**32, "seed must lie in 0 to 4294967295, got 4294967296"),
        ("training__epochs", math.inf, "training.epochs must be a finite number, got inf"),
        (
            "objective__hierarchical__ramp_epochs",
            math.nan,
            "ramp_epochs must be a finite number, got nan",
        ),
        (
            "objective__hierarchical__temperature",
            math.inf,
            "temperature must be a finite number, got inf",
        ),
        ("optimizer__learning_rate", 0.0, "learning_rate must be above 0, got 0.0"),
        ("optimizer__momentum", 1.0, r"momentum must lie in \[0, 1\), got 1.0"),
        ("optimizer__warmup_epochs", 3.0, "shorter than the run, got 3.0"),
        ("optimizer__weight_decay", -1.0, "weight_decay must be 0 or more, got -1.0"),
        ("objective__hierarchical__alpha", -0.5, "alpha must be 0 or more, got -0.5"),
        ("objective__hierarchical__temperature", 0.0, "temperature must be above 0, got 0.0"),
        ("objective__name", "magic", "objective must be one of .*, got 'magic'"),
        ("objective__hierarchical__ramp_epochs", -1.0, "ramp_epochs must be 0 or more, got -1.0"),
        ("model__branching", (1, 2), r"one factor for each of the 3 blocks, got \(1, 2\)"),
        ("model__branching", (1, 2, 0), r"positive integers, got \(1, 2, 0\)"),
        ("model__preset", "huge", "preset must be one of small, large, got 'huge'"),
        ("model__architecture", "vgg", "architecture must be one of resnet, .*, got 'vgg'"),
        ("training__factory", "split", "auto, branched, grouped, got 'split'"),
        ("training__precision", "half", "float32, bfloat16, got 'half'"),
        ("training__ema_momentum", 1.0, "between 0 and 1, got 1.0"),
        ("distribution__synchronized_norm", "maybe", "auto, on or off, got 'maybe'"),
        ("distribution__logical_devices", 0, "logical_devices must be 1 or more, got 0"),
        ("distribution__operation_threads", -1, "operation_threads must be 0 or more, got -1"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    tiny_config, tmp_path, setting, value, message
):
    with pytest.raises(InputError, match=message):
        run_to_end(tiny_config(**{setting: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_default_warm_up_bends_to_a_short_run(tiny_config):
    config = tiny_config(training__epochs=1.0, optimizer__warmup_epochs=1.0)
    schedule = Schedule.of(config, 320)
    rates = optimizer.optimizer(config, schedule).get_config()["learning_rate"]["config"]
    assert (rates["warmup_steps"], rates["decay_steps"]) == (5, 5)
    config.training.epochs = 0.1
    assert optimizer.optimizer(config, Schedule.of(config, 320)) is not None
    # What somebody has chosen is refused where it does not fit.
    config.optimizer.warmup_epochs = 2.0
    with pytest.raises(InputError, match=r"shorter than the run, got 2\.0"):
        optimizer.optimizer(config, schedule)
