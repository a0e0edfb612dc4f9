"""Servers behind a spreading gateway are killed, stalled and restarted: no request is lost."""

import collections
import signal

import grpc
import numpy as np
import pytest
import tensorflow as tf

from hne_tf.client.spread import sums
from tests.serving.server_process import ServerProcess
from tests.serving.steady_load import Load

# Generous, because other tests may keep the machine busy: one stall takes as long.
TIMEOUT_S = 30.0
PARTS = ((0, 2), (2, 5), (5, 8))


@pytest.fixture(scope="module")
def own_paths(parted_path, tmp_path_factory):
    """Base paths of `parted` with the leaves of one part each."""
    model = tf.saved_model.load(str(parted_path))
    paths = []
    for first, stop in PARTS:
        name = f"leaves_{first}_{stop}"
        paths.append(tmp_path_factory.mktemp(name) / "parted")
        tf.saved_model.save(model, str(paths[-1] / "1"), {name: model.signatures[name]})
    return paths


@pytest.fixture(scope="module")
def hosts(own_paths):
    started = [ServerProcess(f"--model_base_path={path}") for path in own_paths]
    yield started
    for each in started:
        each.kill()


@pytest.fixture(scope="module")
def spreading(hosts):
    """A gateway in a process of its own."""
    targets = ",".join(each.address for each in hosts)
    started = ServerProcess(f"--upstream={targets}", "--spread")
    yield started
    started.kill()


@pytest.mark.slow
def test_no_request_is_lost(hosts, spreading, parted_path, images, ask):
    request = ask.request(images, model="parted")
    with grpc.insecure_channel(spreading.address) as channel:
        predict = ask.stub(channel).Predict
        with Load(lambda: ask.arrays(predict(request, timeout=TIMEOUT_S))) as load:
            for number, (host, part) in enumerate(zip(hosts, PARTS, strict=True)):
                address = host.address
                load.until(lambda answer, part=part: part in leaves(answer))
                if number == 1:
                    host.process.send_signal(signal.SIGSTOP)
                    load.until(lambda answer, part=part: part not in leaves(answer))
                    host.process.send_signal(signal.SIGCONT)
                else:
                    host.end(signal.SIGKILL if number else signal.SIGTERM)
                    load.until(lambda answer, part=part: part not in leaves(answer))
                    host.start()
                    assert host.address == address
                load.until(lambda answer, part=part: part in leaves(answer))
            load.until(lambda answer: leaves(answer) == PARTS)
    shares = collections.Counter(round(int(answer["size"][0]) / 8, 3) for answer in load.answers)
    print(f"{len(load.answers)} answers, by share of the leaves: {dict(shares)}")
    assert min(shares) < 1.0
    check(load.answers, parted_path, images)


def leaves(answer):
    return tuple(map(tuple, answer["leaves"][0].tolist()))


def check(answers, path, images):
    """Each answer is the average of just the leaves that it names."""
    model, given = tf.saved_model.load(str(path)).signatures, tf.constant(images)
    alone = model["ensemble_8"](images=given)["probabilities"].numpy()
    totals = {
        part: model["leaves_{}_{}".format(*part)](images=given)["running_sum_logits"].numpy()
        for part in PARTS
    }
    for answer in answers:
        assert answer["size"].tolist() == [sum(stop - first for first, stop in leaves(answer))] * 5
        parts = [totals[part] for part in leaves(answer)]
        expected = sums.probabilities(parts, answer["size"][0], "logits")
        np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
        if leaves(answer) == PARTS:
            np.testing.assert_allclose(answer["probabilities"], alone, atol=1e-5)
