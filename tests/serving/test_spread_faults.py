"""Servers that answer together are killed, stalled and restarted under load: no request is lost."""

import collections
import concurrent.futures
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from hne_tf.bin import serve
from hne_tf.client.spread import sums
from hne_tf.client.spread_client import SpreadClient

# Generous, because other tests may keep the machine busy: one stall takes as long.
DEADLINE_MS = 10_000.0
_CALLERS = 3
_LONGEST_S = 240.0


class Process:
    """A server in a process of its own, which comes back at the same address."""

    def __init__(self, base_path):
        self._base_path = base_path
        self._port = 0
        self._address = None
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "hne_tf.bin.serve"),
                *(f"--model_base_path={self._base_path}", f"--port={self._port}"),
            ],
            cwd=pathlib.Path(serve.__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    @property
    def address(self):
        """Waits until it serves."""
        if self._address is None:
            line = self.process.stdout.readline()
            self._address = line.rsplit("address=", 1)[1].strip()
            self._port = int(self._address.rsplit(":", 1)[1])
        return self._address

    def end(self, number):
        self.process.send_signal(number)
        self.process.wait(30)
        self.process.stdout.close()
        self._address = None


@pytest.fixture(scope="module")
def processes(parted_path):
    started = [Process(parted_path.parent) for _ in range(3)]
    yield started
    for each in started:
        each.process.kill()
        each.process.wait()
        each.process.stdout.close()


class Load:
    """Callers that ask one request after another until the end of the block."""

    def __init__(self, client, images):
        self._client = client
        self._images = images
        self._over = threading.Event()
        self._changed = threading.Condition()
        self.answers = []

    def __enter__(self):
        self._threads = concurrent.futures.ThreadPoolExecutor(_CALLERS)
        self._callers = [self._threads.submit(self._ask) for _ in range(_CALLERS)]
        return self

    def __exit__(self, *error):
        self._over.set()
        self._threads.shutdown()
        # What a caller has raised is what has lost a request.
        for caller in self._callers:
            caller.result()

    def _ask(self):
        while not self._over.wait(0.02):
            answer = self._client.predict(self._images, DEADLINE_MS)
            with self._changed:
                self.answers.append(answer)
                self._changed.notify_all()

    def until(self, wanted):
        """Waits for an answer that is wanted, of the requests from now on."""
        end = time.monotonic() + _LONGEST_S
        with self._changed:
            seen = len(self.answers) + _CALLERS
            while not any(map(wanted, self.answers[seen:])):
                assert time.monotonic() < end
                assert not any(caller.done() for caller in self._callers)
                self._changed.wait(1.0)


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
        with Load(client, images) as load:
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
