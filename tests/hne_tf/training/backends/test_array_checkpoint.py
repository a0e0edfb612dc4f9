import keras
import numpy as np
import pytest
import tensorflow as tf

from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.training import checkpoints
from hne_tf.training.backends.array_checkpoint import ArrayCheckpoint
from hne_tf.tree import Tree


def network(width=4):
    resnet = ResNet("basic", widths=(width,), units=(1,), strides=(1,), stem_width=width)
    images = ImageSpec((8, 8, 1), ("odd", "even"), (0.0,), (1.0,))
    return TreeEnsemble(resnet, Tree((1,)), images)


@pytest.fixture
def model():
    return network()


@pytest.fixture
def counter():
    return keras.Variable(0, dtype="int64")


@pytest.fixture
def checkpoint(model, counter):
    return ArrayCheckpoint({"model": model}, {"optimizer": [counter]})


def save_steps(checkpoint, counter, folder, steps, keep=3):
    for step in steps:
        counter.assign(step)
        checkpoints.save(checkpoint, folder, step, keep)
    counter.assign(0)


def test_the_newest_comes_back_whole(checkpoint, model, counter, tmp_path):
    save_steps(checkpoint, counter, tmp_path, [1, 2, 10], keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["ckpt-10.npz", "ckpt-2.npz"]
    before = weights.read(model)
    for variable in model.weights:
        variable.assign(keras.ops.zeros_like(variable))
    assert checkpoints.restore_newest(checkpoint, tmp_path, pytest.fail) == 10
    assert int(counter) == 10
    for name, value in weights.read(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
    ],
    ids=["bit", "cut", "empty"],
)
def test_a_damaged_one_is_reported_and_passed_over(checkpoint, counter, tmp_path, damage):
    save_steps(checkpoint, counter, tmp_path, [1, 2])
    damage(tmp_path / "ckpt-2.npz")
    reports = []
    assert checkpoints.restore_newest(checkpoint, tmp_path, reports.append) == 1
    assert len(reports) == 1
    assert "ckpt-2 is damaged" in reports[0]
    damage(tmp_path / "ckpt-1.npz")
    with pytest.raises(InputError, match="must hold a sound checkpoint"):
        checkpoints.restore_newest(checkpoint, tmp_path, reports.append)


def test_a_part_is_read_only_if_that_is_asked_for(checkpoint, model, counter, tmp_path):
    save_steps(checkpoint, counter, tmp_path, [3])
    part = ArrayCheckpoint({"model": model})
    assert checkpoints.restore_newest(part, tmp_path, pytest.fail, partial=True) == 3
    with pytest.raises(InputError, match="sound checkpoint"):
        checkpoints.restore_newest(part, tmp_path, lambda line: None)


def test_another_model_is_no_damage(checkpoint, counter, tmp_path):
    save_steps(checkpoint, counter, tmp_path, [1])
    other = ArrayCheckpoint({"model": network(width=8)}, {"optimizer": [counter]})
    with pytest.raises(InputError, match="model with the same shapes"):
        checkpoints.restore_newest(other, tmp_path, pytest.fail)


def test_backends_leave_each_others_checkpoints_alone(checkpoint, counter, tmp_path):
    save_steps(checkpoint, counter, tmp_path / "arrays", [1])
    of_tensorflow = tf.train.Checkpoint(value=tf.Variable(1.0))
    checkpoints.save(of_tensorflow, tmp_path / "files", 1, keep=1)
    for other, folder, names in (
        (of_tensorflow, "arrays", "KERAS_BACKEND=jax for .*, got KERAS_BACKEND=tensorflow"),
        (checkpoint, "files", "KERAS_BACKEND=tensorflow for .*, got KERAS_BACKEND=jax"),
    ):
        with pytest.raises(InputError, match=names):
            checkpoints.restore_newest(other, tmp_path / folder, pytest.fail)
