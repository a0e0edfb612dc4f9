"""What clients promise of any server: ours, and TF Serving where it is installed."""

import concurrent.futures
import contextlib
import re
import socket
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow as tf

from hne_tf.client.answers import BudgetError
from hne_tf.client.anytime_client import COMPLETE, AnytimeClient
from hne_tf.client.budget_client import BudgetClient, ServingClient
from hne_tf.client.messages import CallError
from hne_tf.errors import InputError
from hne_tf.export.warmup import write_requests
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.versions import latest_version_path, new_version
from hne_tf.server import servicers
from hne_tf.server.catalog import Catalog
from hne_tf.server.metrics import ServerMetrics
from hne_tf.server.servable import Servable
from hne_tf.server.service import Options, start
from hne_tf.server.watcher import VersionWatcher
from hne_tf.tree import Tree
from serving import server_config
from serving.server_config import METRICS_PATH, MONITORING, ServerSettings

_LEAVES, _CLASSES = 3, 2
_SIZES = (1, 2, 3)
_LARGEST_BATCH = 4


class _Leaves(tf.Module):
    """Every leaf of a version gives the version's number, and so do their averages."""

    def __init__(self, version):
        self.leaf = tf.Variable(tf.fill([_CLASSES], float(version)))

    def signatures(self):
        def first(images):
            rows = tf.shape(images)[0]
            running_sum = tf.repeat(self.leaf[None], rows, axis=0)
            cache = tf.reshape(tf.cast(images, tf.float32), [rows, -1])
            return {"running_sum": running_sum, "probabilities": running_sum, "cache_0": cache}

        def ensemble(images):
            average = tf.repeat(self.leaf[None], tf.shape(images)[0], axis=0)
            return {"logits": average, "probabilities": tf.nn.softmax(average)}

        def later(size):
            def take_step(cache, running_sum):
                running_sum += self.leaf + 0.0 * tf.reduce_sum(cache, axis=1, keepdims=True)
                return {"running_sum": running_sum, "probabilities": running_sum / size}

            return take_step

        images = tf.TensorSpec([None, 2, 2, 1], tf.uint8, name="images")
        cache = tf.TensorSpec([None, 4], tf.float32, name="cache")
        running_sum = tf.TensorSpec([None, _CLASSES], tf.float32, name="running_sum")
        functions = {"step_1": tf.function(first, input_signature=[images])}
        for size in _SIZES:
            functions[f"ensemble_{size}"] = tf.function(ensemble, input_signature=[images])
        for size in range(2, _LEAVES + 1):
            functions[f"step_{size}"] = tf.function(
                later(size), input_signature=[cache, running_sum]
            )
        return functions


def _publish(base, version):
    model = _Leaves(version)
    model.functions = model.signatures()
    with new_version(base, version) as folder:
        tf.saved_model.save(model, str(folder), signatures=model.functions)
        write_requests(folder, base.name, model.functions, (1, 2))


@pytest.fixture(scope="session", params=["embedded", "tensorflow_model_server"])
def server_kind(request):
    # What computes makes no difference here.
    return request.param


@pytest.fixture
def walks_base(tmp_path):
    _publish(tmp_path / "walks", 1)
    return tmp_path / "walks"


@pytest.fixture
def walks_address(server_kind, walks_base, request):
    """A server of `walks` that looks for new versions."""
    if server_kind != "embedded":
        yield request.getfixturevalue("model_server")(walks_base)
        return
    catalog = Catalog("walks", ServerMetrics())
    watcher = VersionWatcher(catalog, walks_base, interval_s=0.05)
    watcher.start()
    running = start(catalog)
    yield running.address
    running.stop(grace_s=0)
    watcher.stop(timeout_s=10)


@pytest.fixture
def walker(walks_address):
    with AnytimeClient(walks_address, "walks", _manifest()) as client:
        yield client


def _manifest():
    return Manifest.of_tree(Tree((1, _LEAVES)), "walks", ("no", "yes"), (2, 2, 1))


def _is_gone(client, version):
    images = np.zeros([1, 2, 2, 1], np.uint8)
    try:
        client.run("step_1", {"images": images}, version=version)
    except CallError as error:
        return error.code.name == "NOT_FOUND"
    return False


@pytest.mark.parametrize("leaves", [1, 2])
def test_a_walk_across_a_hot_swap_mixes_no_versions(walker, walks_base, walks_address, leaves):
    images = np.zeros([2, 2, 2, 1], np.uint8)
    walk = walker.walk(images)
    answers = iter(walk)
    for _ in range(leaves):
        np.testing.assert_array_equal(next(answers).probabilities, np.full([2, _CLASSES], 1.0))
    _publish(walks_base, 2)
    with ServingClient(walks_address, "walks") as client:
        end = time.monotonic() + 600
        while not _is_gone(client, 1):
            assert time.monotonic() < end
            time.sleep(0.05)
    assert [answer.size for answer in answers] == list(range(leaves + 1, _LEAVES + 1))
    np.testing.assert_array_equal(walk.best.probabilities, np.full([2, _CLASSES], 2.0))
    assert (walk.stopped, walk.failed) == (COMPLETE, False)


@pytest.fixture
def prepared(server_kind, walks_base, tmp_path, request):
    """A server of `walks` after its warm-up, and what counts the graphs that it has prepared.

    TF Serving prepares a graph for each set of outputs that a signature is asked for.
    """
    if server_kind == "embedded":
        return request.getfixturevalue("counting_address")
    monitoring = tmp_path / MONITORING
    settings = ServerSettings("walks", str(walks_base), (1, 2))
    monitoring.write_text(server_config.files(settings)[MONITORING])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = request.getfixturevalue("model_server")(
        walks_base, f"--rest_api_port={port}", f"--monitoring_config_file={monitoring}"
    )

    def graphs():
        text = _page(f"http://127.0.0.1:{port}{METRICS_PATH}")
        return int(re.search(r"^:tensorflow:core:graph_build_calls\{\} (\d+)", text, re.M)[1])

    return address, graphs


def _page(url):
    """The text of a page, whose server may open its port after that of gRPC."""
    end = time.monotonic() + 600
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as page:
                return page.read().decode()
        except urllib.error.URLError:
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.fixture
def counting_address(monkeypatch, request):
    """The embedded server of `walks`, and what counts the sets of outputs it was asked for."""
    asked = set()
    predict, parse = Servable.predict, servicers._parse

    def warmed_up(servable, signature, inputs, output_filter=()):
        asked.add((signature, tuple(output_filter)))
        return predict(servable, signature, inputs, output_filter)

    def called(message):
        parsed = parse(message)
        asked.add((parsed.model_spec.signature_name, tuple(parsed.output_filter)))
        return parsed

    monkeypatch.setattr(Servable, "predict", warmed_up)
    monkeypatch.setattr(servicers, "_parse", called)
    return request.getfixturevalue("walks_address"), lambda: len(asked)


def test_the_first_call_of_each_client_is_one_that_was_warmed_up(prepared):
    address, count = prepared
    images = np.zeros([1, 2, 2, 1], np.uint8)
    before = count()
    with BudgetClient(address, "walks") as client:
        client.measure(images, rounds=1)
        client.predict(images, 10_000.0)
    with AnytimeClient(address, "walks", _manifest()) as client:
        assert client.predict(images).stopped == COMPLETE
    with ServingClient(address, "walks") as client:
        for size in _SIZES:
            client.predict(images, f"ensemble_{size}")
        assert count() == before
        # What nobody asks for is not warmed up, and the count tells.
        client.run("ensemble_1", {"images": images}, ["logits"])
    assert count() > before


@pytest.fixture(scope="module")
def batching_address(server_kind, base_path, tmp_path_factory, request):
    """A server of `digits` that gathers requests into batches."""
    if server_kind == "embedded":
        options = Options(max_batch_size=_LARGEST_BATCH, batch_timeout_micros=2000)
        running = start(Servable("digits", latest_version_path(base_path)), options=options)
        yield running.address
        running.stop(grace_s=0)
        return
    parameters = tmp_path_factory.mktemp("batching") / "batching.txt"
    parameters.write_text(
        f"max_batch_size {{ value: {_LARGEST_BATCH} }}\n"
        "batch_timeout_micros { value: 2000 }\n"
        "num_batch_threads { value: 1 }\n"
    )
    yield request.getfixturevalue("model_server")(
        base_path, "--enable_batching", f"--batching_parameters_file={parameters}"
    )


def test_neighbours_of_other_shapes_cost_no_leaves(batching_address, images):
    over = threading.Event()

    def disturb():
        with ServingClient(batching_address, "digits") as rogue:
            while not over.is_set():
                with contextlib.suppress(CallError):
                    rogue.run("ensemble_4", {"images": np.zeros([1, 9, 8, 1], np.uint8)})

    threads = [threading.Thread(target=disturb) for _ in range(2)]
    with BudgetClient(batching_address, "digits") as client:
        client.measure(images[:1])
        for thread in threads:
            thread.start()
        sizes = [client.predict(images[:1], 10_000.0).size for _ in range(50)]
        over.set()
        for thread in threads:
            thread.join()
    assert set(sizes) == {4}


def test_the_largest_batch_is_said(batching_address, images):
    with (
        BudgetClient(batching_address, "digits") as client,
        pytest.raises(BudgetError, match=r"at most 4 (images|rows).*got 5"),
    ):
        client.predict(images, 10_000.0)


@pytest.fixture(scope="module")
def configured_address(server_kind, base_path, request):
    """A server of `digits` with the threads that `serving.configure` writes."""
    if server_kind == "embedded":
        return request.getfixturevalue("server").address
    threads = ServerSettings("digits", str(base_path), (1, 32)).threads
    return request.getfixturevalue("model_server")(base_path, f"--grpc_max_threads={threads}")


def test_sixty_four_clients_at_once_are_answered(configured_address, images):
    def ask(client):
        return [client.predict(images, "ensemble_4")["logits"].shape for _ in range(5)]

    with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(64) as threads:
        clients = [
            stack.enter_context(ServingClient(configured_address, "digits")) for _ in range(64)
        ]
        answers = list(threads.map(ask, clients))
    assert answers == [[(5, 10)] * 5] * 64


def test_requests_of_no_rows_are_not_sent(batching_address, images):
    """Eight of them would stop the batch queue of TF Serving for good."""
    with (
        ServingClient(batching_address, "digits") as plain,
        BudgetClient(batching_address, "digits") as client,
    ):
        for _ in range(8):
            with pytest.raises(InputError, match="images must have at least one row"):
                plain.run("ensemble_1", {"images": images[:0]})
            with pytest.raises(InputError, match="at least one, got uint8"):
                client.predict(images[:0], 10_000.0)
            with pytest.raises(InputError, match="images must have at least one row"):
                client.measure(images[:0])
        assert client.predict(images[:1], 10_000.0).size == 1
