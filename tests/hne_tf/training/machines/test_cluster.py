import json

import pytest

from configs import digits
from hne_tf.bin import train
from hne_tf.errors import InputError
from hne_tf.training.machines.cluster import Cluster

TWO = {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}


def read(cluster, task):
    text = json.dumps({"cluster": cluster, "task": task, "environment": "cloud"})
    return Cluster.from_environment({"TF_CONFIG": text})


@pytest.mark.parametrize("environment", [{}, {"TF_CONFIG": ""}, {"TF_CONFIG": "{}"}])
def test_a_process_without_tf_config_is_alone(environment):
    cluster = Cluster.from_environment(environment)
    assert cluster == Cluster(workers=1, index=0)
    assert cluster.is_chief


def test_the_first_worker_is_the_chief_where_none_is_named():
    first, second = (read(TWO, {"type": "worker", "index": index}) for index in range(2))
    assert first == Cluster(workers=2, index=0)
    assert second == Cluster(workers=2, index=1)
    assert first.is_chief
    assert not second.is_chief


def test_the_chief_comes_before_the_workers():
    cluster = {**TWO, "chief": ["10.0.0.9:2222"]}
    assert read(cluster, {"type": "chief", "index": 0}) == Cluster(workers=3, index=0)
    assert read(cluster, {"type": "worker", "index": 1}) == Cluster(workers=3, index=2)


def test_an_index_may_be_a_string():
    assert read(TWO, {"type": "worker", "index": "1"}).index == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'cluster'", "must be JSON, got \"{'cluster'\""),
        ("[]", r"object with cluster and task, got \[\]"),
        ('{"clutser": {}, "task": {}}', "object with cluster and task"),
        ('{"cluster": {}, "task": {}}', "must hold chief, worker or both, got {}"),
        ('{"cluster": {"ps": ["a:1"]}, "task": {}}', 'chief, worker or both, got {"ps"'),
        ('{"cluster": {"worker": "a:1"}, "task": {}}', 'list of host:port, got "a:1"'),
        ('{"cluster": {"worker": []}, "task": {}}', r"list of host:port, got \[\]"),
        ('{"cluster": {"worker": ["a"]}, "task": {}}', r'list of host:port, got \["a"\]'),
        ('{"cluster": {"worker": ["a:1", "a:1"]}, "task": {}}', "must differ, got a:1, a:1"),
        ('{"cluster": {"chief": ["a:1", "b:1"]}, "task": {}}', "must be one address"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}', "type and index, got"),
        ('{"cluster": {"worker": ["a:1"]}, "task": null}', "type and index, got null"),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}',
            'task.type in TF_CONFIG must be worker, got "chief"',
        ),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
            "task.index in TF_CONFIG must lie in 0 to 1, got 2",
        ),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": -1}}',
            "must lie in 0 to 1, got -1",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "%s"}}'
            % ("9" * 5000),
            "must lie in 0 to 0, got",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "\u0660"}}',
            "must lie in 0 to 0, got",
        ),
        ("[" * 100_000, "must be JSON"),
    ],
)
def test_what_is_no_cluster_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        Cluster.from_environment({"TF_CONFIG": text})


def test_the_binary_says_in_one_line_what_is_wrong(assert_refused, monkeypatch, tmp_path):
    arguments = [f"--config={digits.__file__}", f"--workdir={tmp_path / 'run'}"]
    monkeypatch.setenv("TF_CONFIG", '{"cluster": ')
    assert_refused(train, arguments, "TF_CONFIG must be JSON")
    tasks = {"cluster": TWO, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(tasks))
    odd = [*arguments, "--config.training.batch_size=31"]
    assert_refused(train, odd, "batch_size must divide by the 2 workers, got 31")
    split = [*arguments, "--config.distribution.logical_devices=2"]
    assert_refused(train, split, "logical_devices must be 1 with several workers, got 2 with 2")
    assert not (tmp_path / "run").exists()
