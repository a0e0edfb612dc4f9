"""A small published model and a server that answers for it."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import concurrent.futures
import dataclasses
import http.client
import json
import shutil
import socket
import subprocess
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    predict_pb2,
    prediction_service_pb2_grpc,
)

from hne_tf.client.budget_client import ServingClient
from hne_tf.client.messages import CallError
from hne_tf.exported import tflite_file
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.measurements import LiteRTLatency, MeasuredLatency, Measurement
from hne_tf.exported.versions import LITERT, MANIFEST, latest_version_path, new_version
from hne_tf.server.catalog import Catalog
from hne_tf.server.metrics import ServerMetrics
from hne_tf.server.rest.door import RestDoor
from hne_tf.server.servable import LoadedSignature, Servable
from hne_tf.server.service import Options, start
from hne_tf.tree import Tree
from tests.serving.fake_service import FakeService
from tests.serving.toy_models import CLASSES, SIZES, Sum, save_ensemble


@pytest.fixture(scope="session")
def base_path(tmp_path_factory):
    """`digits` with version 7 complete, beside folders that must not be served."""
    base = tmp_path_factory.mktemp("models") / "digits"
    save_ensemble(base / "7")
    for other in ("3", ".tmp-9", "10.partial"):
        (base / other).mkdir()
    return base


@pytest.fixture(scope="session")
def publish_litert():
    """Publishes a version of `toy_models.Ensemble` with its TFLite file; TensorFlow takes 2 ms."""

    def publish(base, version, seed=7, litert_ms=1.0, names=None):
        with new_version(base, version) as folder:
            save_ensemble(folder, seed)
            names = names or ["ensemble_1", "ensemble_2", "ensemble_4", "step_2"]
            converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=names)
            manifest = _litert_manifest(litert_ms)
            (folder / LITERT).parent.mkdir()
            tflite_file.write(
                folder / LITERT,
                converter.convert(),
                dataclasses.replace(manifest, latency=None, litert=None, mode="float32"),
            )
            (folder / MANIFEST).write_text(manifest.to_text())
        return base / str(version)

    return publish


def _litert_manifest(litert_ms):
    """Of a model that TensorFlow computes in 2 ms."""

    def latency(milliseconds):
        row = Measurement("ensemble_4", 1, 10, milliseconds, milliseconds, milliseconds, 1)
        return MeasuredLatency({"cores": 2}, (row,))

    litert = None if litert_ms is None else LiteRTLatency(1, latency(litert_ms))
    tree, shape = Tree((1, 2, 2)), (8, 8, 1)
    return Manifest.of_tree(tree, "digits", CLASSES, shape, latency=latency(2.0), litert=litert)


@pytest.fixture(scope="session")
def litert_base(publish_litert, tmp_path_factory):
    """The same `digits` as in `base_path`, with a TFLite file that is faster."""
    base = tmp_path_factory.mktemp("litert") / "digits"
    publish_litert(base, 7)
    return base


@pytest.fixture(scope="session")
def litert_server(litert_base):
    servable = Servable("digits", litert_base / "7")
    assert servable.runtime == "litert"
    running = start(servable)
    yield running
    running.stop(grace_s=0)


@pytest.fixture(scope="session")
def saved_model(base_path):
    """The SavedModel itself, called without any server."""
    return tf.saved_model.load(str(base_path / "7"))


@pytest.fixture(scope="session")
def server(base_path):
    running = start(Servable("digits", latest_version_path(base_path)))
    yield running
    running.stop(grace_s=0)


@dataclasses.dataclass
class HttpAnswer:
    """What came back over HTTP; `json` holds its body."""

    status: int
    headers: http.client.HTTPMessage
    json: object


@pytest.fixture(scope="session")
def open_rest():
    """Opens the REST door of a running server; returns what asks it."""
    doors = []

    def begin(server):
        door = RestDoor(server.inside, "127.0.0.1", 0, None)
        doors.append(door)

        def ask(method, path, body=None, headers=None):
            content = body if body is None or isinstance(body, bytes) else json.dumps(body)
            connection = http.client.HTTPConnection(door.address.removeprefix("http://"))
            try:
                connection.request(method, path, content, headers or {})
                answer = connection.getresponse()
                return HttpAnswer(answer.status, answer.headers, json.loads(answer.read()))
            finally:
                connection.close()

        ask.door = door
        return ask

    yield begin
    for door in doors:
        door.stop()


@pytest.fixture(scope="session")
def rest(server, open_rest):
    """Asks the REST door of `server`: method, path, body and headers."""
    return open_rest(server)


@pytest.fixture(scope="session", params=["embedded", "litert", "tensorflow_model_server"])
def server_kind(request):
    return request.param


@pytest.fixture(scope="session")
def server_address(server_kind, base_path, request):
    """A server of `base_path`: ours with both runtimes, and TF Serving where it is installed."""
    if server_kind != "tensorflow_model_server":
        name = "server" if server_kind == "embedded" else "litert_server"
        return request.getfixturevalue(name).address
    return request.getfixturevalue("model_server")(base_path)


@pytest.fixture(scope="session")
def model_server():
    """Starts TF Serving, if it is installed, with a base path and flags; returns its address."""
    binary = os.environ.get("TENSORFLOW_MODEL_SERVER") or shutil.which("tensorflow_model_server")
    if binary is None:
        pytest.skip("no tensorflow_model_server on the PATH or in TENSORFLOW_MODEL_SERVER")
    processes = []

    def begin(base_path, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        name = f"--model_name={base_path.name}"
        poll = "--file_system_poll_wait_seconds=1"
        command = [binary, f"--port={port}", name, f"--model_base_path={base_path}", poll]
        output = subprocess.DEVNULL
        processes.append(subprocess.Popen([*command, *options], stdout=output, stderr=output))
        _await_model(f"127.0.0.1:{port}", base_path.name)
        return f"127.0.0.1:{port}"

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def _await_model(address, name):
    """The port of TF Serving opens before or after the model is loaded."""
    end = time.monotonic() + 60
    with ServingClient(address, name) as client:
        while True:
            try:
                return client.info(1.0)
            except CallError:
                assert time.monotonic() < end
                time.sleep(0.05)


@pytest.fixture(scope="session")
def publish_sums():
    """Publishes a version of `toy_models.Sum` whose constant is the version's number."""

    def publish(base, version, complete=lambda folder: None):
        model = Sum(version)
        with new_version(base, version) as folder:
            signatures = {"serving_default": model.sums, "spin": model.spin}
            tf.saved_model.save(model, str(folder), signatures=signatures)
            complete(folder)
        return base / str(version)

    return publish


@pytest.fixture(scope="session")
def sums_path(publish_sums, tmp_path_factory):
    """Version 1 of `sums`: signatures `serving_default` and `spin`."""
    return publish_sums(tmp_path_factory.mktemp("models") / "sums", 1)


@pytest.fixture(scope="session")
def sums_request():
    """Makes a request for the sums of `rows` rows of `value` and zero."""

    def make(value=0.0, rows=1, **spec):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "sums"
        for field, number in spec.items():
            getattr(request.model_spec, field).value = number
        array = np.tile(np.array([[value, 0.0]], np.float32), (rows, 1))
        request.inputs["values"].CopyFrom(tf.make_tensor_proto(array))
        return request

    return make


@pytest.fixture
def catalog():
    return Catalog("sums", ServerMetrics())


@pytest.fixture
def in_service(catalog):
    """Waits until `count` predictions have been read and found their version."""

    def wait(count):
        end = time.monotonic() + 20
        while sum(catalog._users.values()) != count:
            assert time.monotonic() < end
            time.sleep(0.005)

    return wait


@pytest.fixture
def serve(catalog, sums_path):
    """Serves the catalog, or version 1 if it is empty; returns a channel to the server."""
    running, channels = [], []

    def begin(**options):
        if catalog.served is None:
            catalog.publish(Servable("sums", sums_path))
        running.append(start(catalog, options=Options(**options)))
        channels.append(grpc.insecure_channel(running[-1].address))
        begin.ports.append(running[-1].port)
        return channels[-1]

    begin.ports = []
    yield begin
    for channel in channels:
        channel.close()
    for server in running:
        server.stop(grace_s=0)


class Gate:
    """Holds every run of a graph until it is opened; `runs` are their inputs."""

    def __init__(self):
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        self.runs = []


@pytest.fixture
def gate(monkeypatch):
    made = Gate()
    run = LoadedSignature.run

    def held(signature, arrays):
        made.runs.append(arrays)
        made.entered.release()
        assert made.opened.wait(30)
        return run(signature, arrays)

    monkeypatch.setattr(LoadedSignature, "run", held)
    yield made
    made.opened.set()


@pytest.fixture(scope="session")
def images():
    """uint8 `[5, 8, 8, 1]`."""
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)


@pytest.fixture
def manifest():
    """Of the model `digits`, whose latencies are its sizes times the batch size."""
    rows = [
        Measurement(
            f"ensemble_{size}",
            batch_size,
            runs=50,
            p50_ms=0.5 * size * batch_size,
            p95_ms=1.0 * size * batch_size,
            p99_ms=2.0 * size * batch_size,
        )
        for size in SIZES
        for batch_size in (1, 16)
    ]
    latency = MeasuredLatency({"cpu": "a test's"}, tuple(rows))
    return Manifest.of_tree(Tree((1, 2, 2)), "digits", CLASSES, (8, 8, 1), latency=latency)


@pytest.fixture
def manifest_content(manifest):
    return manifest.to_json()


@pytest.fixture
def manifest_path(tmp_path, manifest):
    path = tmp_path / "hne_manifest.json"
    path.write_text(manifest.to_text())
    return path


@pytest.fixture
def serve_fake():
    """Serves a new `FakeService`; returns it and its address. `stop` ends one."""
    servers = []
    stops = {}

    def begin():
        service = FakeService()
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        stops[f"127.0.0.1:{port}"] = server
        return service, f"127.0.0.1:{port}"

    begin.stop = lambda address: stops[address].stop(0).wait()
    yield begin
    for server in servers:
        server.stop(0)


@pytest.fixture
def fake(serve_fake):
    """A `FakeService` and its address."""
    return serve_fake()


@pytest.fixture
def service(fake):
    return fake[0]


@pytest.fixture
def address(fake):
    return fake[1]


@pytest.fixture
def opened():
    """An event that a stalled host waits for, set at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(scope="session")
def parted_path(tmp_path_factory):
    """Version 1 of `parted`: a tree of 8 leaves with signatures of 2, 3 and 4 parts of them."""
    import hne_tf as hne
    from hne_tf.export import signatures
    from hne_tf.exported.interface import split
    from hne_tf.models.folding import deployed

    resnet = hne.architectures.ResNet("basic", widths=(4, 4, 4), units=(1, 1, 1), strides=(1, 2, 1))
    digits = hne.ImageSpec((8, 8, 1), CLASSES, mean=(78.0,), std=(96.0,))
    model = hne.TreeEnsemble(resnet, hne.Tree((2, 2, 2)), digits)
    # So that leaves differ more than they are rounded.
    generator = np.random.default_rng(3)
    model.set_weights(
        [weight + generator.normal(0, 0.1, weight.shape) for weight in _weights(model)]
    )
    parts = sorted({part for number in (2, 3, 4) for part in split(8, number)})
    path = tmp_path_factory.mktemp("models") / "parted" / "1"
    signatures.save(signatures.signatures(deployed(model), (1, 8), None, parts), str(path))
    return path


def _weights(model):
    return [np.abs(weight) if weight.ndim == 1 else weight for weight in model.get_weights()]
