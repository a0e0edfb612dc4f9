"""One request over several servers of this process, real ones and ones with faults."""

import concurrent.futures
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf

from hne_tf.client.answers import BudgetError
from hne_tf.client.messages import CallError
from hne_tf.client.spread import sums
from hne_tf.client.spread_client import SpreadClient
from hne_tf.errors import InputError
from hne_tf.server.servable import Servable
from hne_tf.server.service import start
from tests.serving.leaf_host import HALVES, IMAGES, Host, expected, serve

# Generous, because other tests may keep the machine busy.
DEADLINE_MS = 20_000.0
# What is meant to pass.
SHORT_MS = 400.0


@pytest.fixture
def begin():
    """Starts hosts; returns their addresses, and a client of them all."""
    servers, clients = [], []

    def run(*hosts, **settings):
        started = [serve(host) for host in hosts]
        servers.extend(server for server, _ in started)
        addresses = [address for _, address in started]
        clients.append(SpreadClient(addresses, "digits", **settings))
        return addresses, clients[-1]

    yield run
    for client in clients:
        client.close()
    for server in servers:
        server.stop(0)


def check(answer, *leaves, version=1):
    assert answer.leaves == leaves
    assert answer.version == version
    assert answer.size == sum(stop - first for first, stop in leaves)
    np.testing.assert_allclose(answer.probabilities, expected(version, *leaves), rtol=1e-6)


@pytest.fixture
def three(parted_path):
    """Three servers of one model."""
    servers = [start(Servable("parted", parted_path)) for _ in range(3)]
    yield servers
    for server in servers:
        server.stop(grace_s=0)


def test_three_servers_answer_as_one_does(three, parted_path, images):
    one = tf.saved_model.load(str(parted_path))
    outputs = one.signatures["ensemble_8"](images=tf.constant(images))
    alone = outputs["probabilities"].numpy()
    addresses = [server.address for server in three]
    with SpreadClient(addresses, "parted") as client:
        answer = client.predict(images, DEADLINE_MS)
        np.testing.assert_allclose(answer.probabilities, alone, atol=1e-5)
        assert (answer.share, answer.size) == (1.0, 8)
        assert answer.leaves == ((0, 2), (2, 5), (5, 8))
        assert {each.address for each in answer.attempts} == set(addresses)
        assert {each.code for each in answer.attempts} == {"OK"}
        with pytest.raises(InputError, match=r"uint8 \[batch, 8, 8, 1\]"):
            client.predict(images[:, :4], DEADLINE_MS)
        three[0].stop(grace_s=0)
        three[2].stop(grace_s=0)
        for _ in range(5):
            answer = client.predict(images, DEADLINE_MS)
            # The one that is left has time to take over.
            assert answer.share == 1.0
            np.testing.assert_allclose(answer.probabilities, alone, atol=1e-5)
    # Leaves differ, so that a part by itself answers otherwise.
    some = one.signatures["leaves_0_2"](images=tf.constant(images))["running_sum_logits"]
    part = sums.probabilities([some.numpy()], 2, "logits")
    assert np.abs(part - alone).max() > 1e-3


def test_leaves_of_all_hosts_are_summed(begin):
    hosts = [Host(HALVES), Host(HALVES)]
    _, client = begin(*hosts)
    answer = client.predict(IMAGES, DEADLINE_MS)
    check(answer, *HALVES)
    assert answer.share == 1.0
    assert sorted(hosts[0].calls + hosts[1].calls) == ["leaves_0_8", "leaves_8_16"]
    assert len(hosts[0].calls) == 1
    plan = client.learn()
    assert (plan.version, plan.leaves, len(plan.hosts)) == (1, 16, 2)


def test_one_host_computes_several_parts(begin):
    host = Host(HALVES)
    _, client = begin(host)
    check(client.predict(IMAGES, DEADLINE_MS), *HALVES)
    assert host.calls == ["leaves_0_8", "leaves_8_16"]


def test_replicas_share_requests(begin):
    hosts = [Host(HALVES) for _ in range(4)]
    _, client = begin(*hosts)
    for _ in range(8):
        check(client.predict(IMAGES, DEADLINE_MS), *HALVES)
    assert [len(host.calls) for host in hosts] == [4, 4, 4, 4]


def test_hosts_are_asked_for_what_they_are_given(begin):
    hosts = [Host(HALVES), Host(HALVES)]
    addresses, _ = begin(*hosts)
    given = {addresses[0]: [(8, 16)], addresses[1]: [(0, 8)]}
    with SpreadClient(addresses, "digits", leaves=given) as client:
        for _ in range(3):
            check(client.predict(IMAGES, DEADLINE_MS), *HALVES)
    assert [set(host.calls) for host in hosts] == [{"leaves_8_16"}, {"leaves_0_8"}]


def test_a_dead_host_costs_its_leaves_not_the_answer(begin):
    alive, dead = Host(HALVES[:1]), Host(HALVES[1:])
    dead.fault = lambda name: grpc.StatusCode.UNAVAILABLE
    _, client = begin(alive, dead)
    answer = client.predict(IMAGES, DEADLINE_MS)
    check(answer, (0, 8))
    assert {each.code for each in answer.attempts} == {"OK", "UNAVAILABLE"}
    # Avoided, and then tried again.
    client.predict(IMAGES, DEADLINE_MS)
    assert len(dead.calls) == 1
    dead.fault = lambda name: None
    assert {0.5, 1.0} >= set(_until_all_leaves(client))


def _until_all_leaves(client):
    """Shares of the leaves of answers, up to the first with all of them."""
    shares = []
    while 1.0 not in shares:
        shares.append(client.predict(IMAGES, DEADLINE_MS).share)
        threading.Event().wait(0.05)
        assert len(shares) < 500
    return shares


def test_a_host_that_cannot_be_reached_from_the_start_is_left_out(begin):
    addresses, _ = begin(Host(HALVES))
    # Nobody listens on port 1.
    with SpreadClient([*addresses, "127.0.0.1:1"], "digits") as client:
        check(client.predict(IMAGES, DEADLINE_MS), *HALVES)


def test_a_stalled_host_costs_its_leaves_once(begin, opened):
    alive, stalled = Host(HALVES), Host(HALVES)
    addresses, _ = begin(alive, stalled)
    given = {addresses[0]: [(0, 8)], addresses[1]: [(8, 16)]}
    with SpreadClient(addresses, "digits", leaves=given) as client:
        assert client.predict(IMAGES, DEADLINE_MS).share == 1.0
        stalled.fault = lambda name: opened.wait(60) and None
        answer = client.predict(IMAGES, SHORT_MS)
        check(answer, (0, 8))
        assert {each.code for each in answer.attempts} == {"OK", "DEADLINE_EXCEEDED"}
        asked = len(stalled.calls)
        # Nobody waits for it now, however long the deadline is.
        answer = client.predict(IMAGES, DEADLINE_MS)
        assert answer.latency_ms < DEADLINE_MS / 2
        check(answer, (0, 8))
        assert len(stalled.calls) == asked
        opened.set()
        stalled.fault = lambda name: None
        _until_all_leaves(client)


def test_another_host_takes_over_while_there_is_time(begin):
    hosts = [Host(HALVES), Host(HALVES)]
    hosts[0].fault = lambda name: grpc.StatusCode.RESOURCE_EXHAUSTED
    _, client = begin(*hosts)
    check(client.predict(IMAGES, DEADLINE_MS), *HALVES)
    assert sorted(hosts[1].calls) == ["leaves_0_8", "leaves_8_16"]


def test_nothing_in_time_is_an_error_that_says_so(begin, opened):
    host = Host(HALVES)
    host.fault = lambda name: opened.wait(60) and None
    _, client = begin(host)
    client.learn()
    with pytest.raises(BudgetError, match=r"no leaves of 'digits' within 400 ms") as raised:
        client.predict(IMAGES, SHORT_MS)
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert [each.code for each in raised.value.attempts] == ["DEADLINE_EXCEEDED"]
    # Nobody was better: it is asked again at once.
    opened.set()
    check(client.predict(IMAGES, DEADLINE_MS), *HALVES)


def test_hosts_that_all_fail_are_asked_again_until_the_deadline(begin):
    host = Host(HALVES)
    codes = [grpc.StatusCode.UNAVAILABLE] * 2
    host.fault = lambda name: codes.pop() if codes else None
    _, client = begin(host)
    check(client.predict(IMAGES, DEADLINE_MS), *HALVES)
    assert not codes


def test_no_server_at_all_is_an_error():
    with SpreadClient(["127.0.0.1:1"], "digits") as client:
        with pytest.raises(CallError, match="no server can be reached"):
            client.learn()
        with pytest.raises(BudgetError, match=r"reached at 127\.0\.0\.1:1") as raised:
            client.predict(IMAGES, SHORT_MS)
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_what_no_host_would_answer_is_not_asked_again(begin):
    hosts = [Host(HALVES), Host(HALVES)]
    for host in hosts:
        host.fault = lambda name: grpc.StatusCode.INVALID_ARGUMENT
    _, client = begin(*hosts)
    with pytest.raises(BudgetError, match="a fault of the test") as raised:
        client.predict(IMAGES, DEADLINE_MS)
    assert raised.value.code is grpc.StatusCode.INVALID_ARGUMENT
    # No host is worse for it.
    for host in hosts:
        host.fault = lambda name: None
    check(client.predict(IMAGES, DEADLINE_MS), *HALVES)


def test_leaves_of_two_versions_are_never_in_one_answer(begin):
    old, new = Host(HALVES), Host(HALVES, version=2)
    _, client = begin(old, new)
    check(client.predict(IMAGES, DEADLINE_MS), *HALVES, version=2)
    assert old.calls == []
    # Both go on to the next, but tell of another.
    new.version = old.version = 3
    new.tells = old.tells = 2
    with pytest.raises(BudgetError):
        client.predict(IMAGES, SHORT_MS)
    new.tells = old.tells = None
    check(client.predict(IMAGES, DEADLINE_MS), *HALVES, version=3)


def test_a_host_that_changes_its_version_is_asked_what_it_serves(begin):
    hosts = [Host(HALVES), Host(HALVES)]
    addresses, _ = begin(*hosts)
    given = {addresses[0]: [(0, 8)], addresses[1]: [(8, 16)]}
    with SpreadClient(addresses, "digits", leaves=given) as client:
        check(client.predict(IMAGES, DEADLINE_MS), *HALVES)
        hosts[0].version = 2
        # The other leaves are right, whichever version the next answer is of.
        for _ in range(5):
            answer = client.predict(IMAGES, DEADLINE_MS)
            leaves = ((0, 8),) if answer.version == 2 else ((8, 16),)
            check(answer, *leaves, version=answer.version)
        hosts[1].version = 2
        _until_all_leaves(client)
        check(client.predict(IMAGES, DEADLINE_MS), *HALVES, version=2)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (((0, 8), (10, 16)), "got none for 8, 9"),
        (((0, 8), (6, 16)), "without an overlap"),
        ((), "none of 'digits'"),
    ],
)
def test_hosts_that_cannot_answer_together_are_one_clear_error(begin, parts, reason):
    hosts = [Host((part,)) for part in parts] or [Host(())]
    _, client = begin(*hosts)
    with pytest.raises(InputError, match=reason):
        client.learn()
    with pytest.raises(InputError, match=reason):
        client.predict(IMAGES, DEADLINE_MS)


def test_a_model_that_is_exported_anew_with_leaves_is_found(begin):
    host = Host(())
    _, client = begin(host)
    with pytest.raises(InputError, match="none of 'digits'"):
        client.predict(IMAGES, DEADLINE_MS)
    host.parts = HALVES
    for _ in range(500):
        try:
            answer = client.predict(IMAGES, DEADLINE_MS)
            break
        except InputError:
            threading.Event().wait(0.05)
    check(answer, *HALVES)


@pytest.mark.parametrize(
    ("targets", "reason"),
    [([], r"got \[\]"), (["a:1", "a:1"], "different servers"), ("a:1", "got 'a:1'")],
)
def test_targets_must_be_different_servers(targets, reason):
    with pytest.raises(InputError, match=reason):
        SpreadClient(targets, "digits")


def test_leaves_that_overlap_are_refused_before_anybody_is_asked():
    with pytest.raises(InputError, match="without an overlap, got leaves 0 to 7, 6 to 15"):
        SpreadClient(["a:1", "b:1"], "digits", leaves={"a:1": [(0, 8)], "b:1": [(6, 16)]})


@pytest.mark.parametrize("deadline_ms", [0, -1.0, float("nan"), float("inf"), None, "5"])
def test_a_deadline_must_be_a_number_above_0(begin, deadline_ms):
    _, client = begin(Host(HALVES))
    with pytest.raises(InputError, match="deadline_ms must be a"):
        client.predict(IMAGES, deadline_ms)


def test_a_closed_client_says_so(begin):
    _, client = begin(Host(HALVES))
    client.predict(IMAGES, DEADLINE_MS)
    client.close()
    with pytest.raises(InputError, match=r"after close\(\)"):
        client.predict(IMAGES, DEADLINE_MS)


def test_metrics_count_leaves_and_calls(begin):
    _, client = begin(Host(HALVES[:1]), Host(HALVES[1:]))
    client.predict(IMAGES, DEADLINE_MS)

    def value(name, **labels):
        return client.registry.get_sample_value(name, {"model": "digits", **labels})

    assert value("hne_client_answers_total", size="16") == 1
    assert value("hne_client_requests_total", signature="leaves_8_16", code="OK") == 1


def test_many_requests_at_once_are_all_answered(begin):
    hosts = [Host(HALVES) for _ in range(3)]
    _, client = begin(*hosts)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: client.predict(IMAGES, DEADLINE_MS), range(48)))
    for answer in answers:
        check(answer, *HALVES)
