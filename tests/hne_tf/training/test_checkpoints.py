import pytest
import tensorflow as tf

from hne_tf.errors import InputError
from hne_tf.training import checkpoints


@pytest.fixture
def state():
    return tf.train.Checkpoint(value=tf.Variable(tf.zeros([64])))


@pytest.fixture
def reports():
    return []


def save_steps(state, folder, steps, keep=3):
    for step in steps:
        state.value.assign(tf.fill([64], float(step)))
        checkpoints.save(state, folder, step, keep)
    state.value.assign(tf.zeros([64]))


def data_file(folder, step):
    return folder / f"ckpt-{step}.data-00000-of-00001"


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


def test_the_newest_is_restored(state, tmp_path, reports):
    save_steps(state, tmp_path, [1, 2, 10])
    assert checkpoints.restore_newest(state, tmp_path, reports.append) == 10
    assert state.value[0] == 10
    assert not reports


def test_only_the_newest_are_kept(state, tmp_path):
    save_steps(state, tmp_path, [1, 2, 10, 20], keep=2)
    assert checkpoints.steps(tmp_path) == [20, 10]


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, empty, remove])
@pytest.mark.parametrize("part", ["data-00000-of-00001", "index"])
def test_a_damaged_newest_is_reported_and_passed_over(state, tmp_path, reports, damage, part):
    save_steps(state, tmp_path, [1, 2])
    damage(tmp_path / f"ckpt-2.{part}")
    assert checkpoints.restore_newest(state, tmp_path, reports.append) == 1
    assert state.value[0] == 1
    assert len(reports) == 1
    assert "ckpt-2 is damaged" in reports[0]


def test_a_checkpoint_of_something_else_is_not_restored(state, tmp_path, reports):
    save_steps(state, tmp_path, [1])
    other = tf.train.Checkpoint(other=tf.Variable(tf.zeros([3])))
    with pytest.raises(InputError, match="sound checkpoint"):
        checkpoints.restore_newest(other, tmp_path, reports.append)


def test_nothing_sound_is_an_error_and_nothing_is_removed(state, tmp_path, reports):
    save_steps(state, tmp_path, [1, 2])
    for step in (1, 2):
        truncate(data_file(tmp_path, step))
    with pytest.raises(InputError, match="--restart"):
        checkpoints.restore_newest(state, tmp_path, reports.append)
    assert len(reports) == 2
    assert checkpoints.steps(tmp_path) == [2, 1]


def test_an_empty_folder_has_no_checkpoint(state, tmp_path, reports):
    assert checkpoints.restore_newest(state, tmp_path, reports.append) is None


def test_a_part_can_be_restored_when_asked(tmp_path, reports):
    whole = tf.train.Checkpoint(value=tf.Variable(3.0), other=tf.Variable(4.0))
    checkpoints.save(whole, tmp_path, 5, keep=1)
    part = tf.train.Checkpoint(value=tf.Variable(0.0))
    assert checkpoints.restore_newest(part, tmp_path, reports.append, partial=True) == 5
    assert part.value == 3


def test_what_a_kill_leaves_of_the_first_checkpoint_is_none(state, tmp_path, reports):
    (tmp_path / "ckpt-0_temp").mkdir()
    (tmp_path / "ckpt-0.data-00000-of-00001").write_bytes(b"half")
    (tmp_path / ".writing").mkdir()
    assert checkpoints.restore_newest(state, tmp_path, reports.append) is None
    save_steps(state, tmp_path, [0])
    assert checkpoints.restore_newest(state, tmp_path, reports.append) == 0
    assert not (tmp_path / ".writing").exists()


def test_a_damaged_newest_checkpoint_costs_no_sound_one(state, tmp_path, reports):
    save_steps(state, tmp_path, [10, 20], keep=2)
    truncate(data_file(tmp_path, 20))
    assert checkpoints.restore_newest(state, tmp_path, reports.append) == 10
    save_steps(state, tmp_path, [15], keep=1)
    truncate(data_file(tmp_path, 20))
    assert checkpoints.restore_newest(state, tmp_path, reports.append) == 15


def test_a_checkpoint_of_other_shapes_is_named_as_one(state, tmp_path, reports):
    save_steps(state, tmp_path, [5])
    other = tf.train.Checkpoint(value=tf.Variable(tf.zeros([65])))
    with pytest.raises(InputError, match=r"ckpt-5 must be of a model with the same shapes"):
        checkpoints.restore_newest(other, tmp_path, reports.append)
    assert not reports


def test_a_checkpoint_that_cannot_be_written_leaves_the_others(state, tmp_path, reports):
    save_steps(state, tmp_path, [5])
    (tmp_path / ".writing").write_text("in the way")
    with pytest.raises(InputError, match=r"ckpt-6 must be writable"):
        checkpoints.save(state, tmp_path, 6, keep=1)
    assert checkpoints.restore_newest(state, tmp_path, reports.append) == 5


@pytest.mark.parametrize("name", ["ckpt-²", "ckpt-٣", "ckpt-x", "ckpt-"])
def test_a_checkpoint_has_a_number_in_plain_digits(state, tmp_path, reports, name):
    save_steps(state, tmp_path, [1])
    (tmp_path / f"{name}.index").touch()
    assert checkpoints.steps(tmp_path) == [1]
    assert checkpoints.restore_newest(state, tmp_path, reports.append) == 1
    assert not reports
