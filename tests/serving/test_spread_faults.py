"""Servers that answer together are killed, stalled and restarted under load: no request is lost."""

import collections
import signal

import numpy as np
import pytest
import tensorflow as tf

from hne_tf.client.spread import sums
from hne_tf.client.spread_client import SpreadClient
from tests.serving.server_process import ServerProcess
from tests.serving.steady_load import Load

# Generous, because other tests may keep the machine busy: one stall takes as long.
DEADLINE_MS = 10_000.0


@pytest.fixture(scope="module")
def processes(parted_path):
    started = [ServerProcess(f"--model_base_path={parted_path.parent}") for _ in range(3)]
    yield started
    for each in started:
        each.kill()


def computed(address):
    return lambda answer: any(
        (each.address, each.code) == (address, "OK") for each in answer.attempts
    )


def avoided(address):
    return lambda answer: all(each.address != address for each in answer.attempts)


@pytest.mark.slow
@pytest.mark.parametrize("only", [False, True], ids=["any_leaves", "leaves_of_their_own"])
def test_no_request_is_lost(processes, parted_path, images, only):
    addresses = [each.address for each in processes]
    parts = [(0, 2), (2, 5), (5, 8)]
    given = {each: [part] for each, part in zip(addresses, parts, strict=True)} if only else None
    with SpreadClient(addresses, "parted", leaves=given) as client:
        client.learn(60.0)
        with Load(lambda: client.predict(images, DEADLINE_MS)) as load:
            for number, (process, address) in enumerate(zip(processes, addresses, strict=True)):
                load.until(computed(address))
                if number == 1:
                    process.process.send_signal(signal.SIGSTOP)
                    load.until(avoided(address))
                    process.process.send_signal(signal.SIGCONT)
                else:
                    process.end(signal.SIGKILL if number else signal.SIGTERM)
                    load.until(avoided(address))
                    process.start()
                    assert process.address == address
                load.until(computed(address))
            load.until(lambda answer: answer.share == 1.0)
    shares = collections.Counter(round(answer.share, 3) for answer in load.answers)
    print(f"{len(load.answers)} answers, by share of the leaves: {dict(shares)}")
    check(load.answers, parted_path, images)
    # Others take over what they can; otherwise there is nobody else for the leaves.
    assert (min(shares) < 1.0) or not only


def check(answers, path, images):
    """Each answer is the average of just the leaves that it names."""
    model = tf.saved_model.load(str(path))
    alone = model.signatures["ensemble_8"](images=tf.constant(images))["probabilities"].numpy()
    totals = {
        (first, stop): model.signatures[f"leaves_{first}_{stop}"](images=tf.constant(images))[
            "running_sum_logits"
        ].numpy()
        for first, stop in ((0, 2), (2, 5), (5, 8))
    }
    for answer in answers:
        expected = sums.probabilities(
            [totals[part] for part in answer.leaves], answer.size, "logits"
        )
        np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5)
        if answer.share == 1.0:
            np.testing.assert_allclose(answer.probabilities, alone, atol=1e-5)
