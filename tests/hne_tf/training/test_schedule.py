import pytest

from hne_tf.errors import InputError
from hne_tf.training.schedule import Schedule


def test_the_host_is_needed_at_calls_checkpoints_and_validations():
    schedule = Schedule(
        steps_per_epoch=10.0, total=23, per_call=4, checkpoint_every=6, validate_every=10
    )
    stops = [0]
    while stops[-1] < schedule.total:
        stops.append(schedule.next_stop(stops[-1]))
    assert stops == [0, 4, 6, 8, 10, 12, 16, 18, 20, 23]
    due = [stop for stop in stops if stop and schedule.is_due(stop, schedule.checkpoint_every)]
    assert due == [6, 12, 18, 23]


@pytest.mark.parametrize("field", ["epochs", "batch_size", "steps_per_call", "keep_checkpoints"])
def test_settings_that_count_must_be_positive(tiny_config, field):
    with pytest.raises(InputError, match=f"training.{field} must be above 0, got 0"):
        Schedule.of(tiny_config(**{f"training__{field}": 0}), examples=100)


def test_steps_are_counted_from_epochs_that_need_not_be_whole_batches(tiny_config):
    schedule = Schedule.of(tiny_config(training__epochs=2.5, training__batch_size=16), examples=100)
    assert schedule.steps_per_epoch == 6.25
    assert schedule.total == 16
    assert schedule.checkpoint_every == 6
