import pytest
import tensorflow as tf

from hne_tf.errors import InputError, InterruptedRunError
from hne_tf.training.machines.cluster import Cluster
from hne_tf.training.machines.devices import strategy_of
from hne_tf.training.machines.workers import Workers, lost_workers_told

LOST = tf.errors.UnavailableError(
    None, None, "Graph execution error:\n\nCollective ops is aborted by: Socket closed\nRestart."
)


def test_one_worker_agrees_with_itself(tiny_config):
    workers = Workers(Cluster(), strategy_of(tiny_config(), Cluster()))
    workers.wait()
    assert workers.any(True)
    assert not workers.any(False)
    assert workers.agree(3)


def test_a_lost_worker_is_told_with_the_reason():
    with (
        pytest.raises(InterruptedRunError, match=r"one of the 2 workers is lost \(Socket closed\)"),
        lost_workers_told(Cluster(workers=2)),
    ):
        raise LOST


def test_a_worker_that_is_alone_loses_none():
    with pytest.raises(tf.errors.UnavailableError), lost_workers_told(Cluster()):
        raise LOST


def test_workers_must_connect_before_tensorflow_is_used(tiny_config, monkeypatch):
    assert tf.constant(1) == 1
    monkeypatch.setenv(
        "TF_CONFIG",
        '{"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}, '
        '"task": {"type": "worker", "index": 0}}',
    )
    with pytest.raises(InputError, match="TensorFlow has not been used before, got 2"):
        strategy_of(tiny_config(), Cluster.from_environment())


class Meetings:
    """A strategy whose workers meet as often as told; then the other one is gone."""

    num_replicas_in_sync = 2

    def __init__(self, count):
        self.left = count

    def experimental_distribute_values_from_function(self, value):
        return value(None)

    def reduce(self, operation, value, axis):
        del operation, axis
        if not self.left:
            raise LOST
        self.left -= 1
        return 2 * value


def test_a_worker_leaves_when_all_have_what_they_need():
    cluster = Cluster(workers=2)
    for meetings in (1, 2):
        Workers(cluster, Meetings(meetings)).leave()
    with pytest.raises(tf.errors.UnavailableError):
        Workers(cluster, Meetings(0)).leave()
