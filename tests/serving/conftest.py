"""A small published model and a server that answers for it."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

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
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from hne_tf.export.publish import new_version
from hne_tf.server.catalog import Catalog
from hne_tf.server.metrics import ServerMetrics
from hne_tf.server.servable import LoadedSignature, Servable, latest_version_path
from hne_tf.server.service import Options, start

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZES = (1, 2, 4)


class _Ensemble(tf.Module):
    """Four convolutional networks of different weights."""

    def __init__(self):
        generator = tf.random.Generator.from_seed(7)
        self.kernels = [tf.Variable(generator.normal([3, 3, 1, 6])) for _ in range(max(SIZES))]
        self.heads = [tf.Variable(generator.normal([6, len(CLASSES)])) for _ in range(max(SIZES))]

    def signature(self, size):
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1], tf.uint8, name="images")])
        def predict(images):
            pixels = tf.cast(images, tf.float32) / 255.0
            leaves = [
                tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(pixels, kernel, 1, "SAME")), [1, 2]) @ head
                for kernel, head in zip(self.kernels[:size], self.heads, strict=False)
            ]
            logits = tf.add_n(leaves) / size
            return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

        return predict

    def step(self):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None, 6], tf.float32, name="cache"),
                tf.TensorSpec([None, len(CLASSES)], tf.float32, name="running_sum"),
            ]
        )
        def predict(cache, running_sum):
            total = running_sum + cache @ self.heads[1]
            return {"running_sum": total, "probabilities": tf.nn.softmax(total / 2.0)}

        return predict


@pytest.fixture(scope="session")
def base_path(tmp_path_factory):
    """`digits` with version 7 complete, beside folders that must not be served."""
    base = tmp_path_factory.mktemp("models") / "digits"
    model = _Ensemble()
    model.functions = {f"ensemble_{size}": model.signature(size) for size in SIZES}
    model.functions["step_2"] = model.step()
    model.functions["serving_default"] = model.functions["ensemble_4"]
    tf.saved_model.save(model, str(base / "7"), signatures=model.functions)
    for other in ("3", ".tmp-9", "10.partial"):
        (base / other).mkdir()
    return base


@pytest.fixture(scope="session")
def saved_model(base_path):
    """The SavedModel itself, called without any server."""
    return tf.saved_model.load(str(base_path / "7"))


@pytest.fixture(scope="session")
def server(base_path):
    running = start(Servable("digits", latest_version_path(base_path)))
    yield running
    running.stop(grace_s=0)


@pytest.fixture(scope="session", params=["embedded", "tensorflow_model_server"])
def server_kind(request):
    return request.param


@pytest.fixture(scope="session")
def server_address(server_kind, base_path, request):
    """A server of `base_path`: ours, and TF Serving where it is installed."""
    if server_kind == "embedded":
        yield request.getfixturevalue("server").address
        return
    binary = os.environ.get("TENSORFLOW_MODEL_SERVER") or shutil.which("tensorflow_model_server")
    if binary is None:
        pytest.skip("no tensorflow_model_server on the PATH or in TENSORFLOW_MODEL_SERVER")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            binary,
            f"--port={port}",
            "--model_name=digits",
            f"--model_base_path={base_path}",
            "--file_system_poll_wait_seconds=1",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            request_ = predict_pb2.PredictRequest()
            request_.model_spec.name = "digits"
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                # Its port opens before or after the model is loaded; inputs are missing.
                stub.Predict(request_, wait_for_ready=True, timeout=60)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


class _Sum(tf.Module):
    """Sums rows and adds a constant, which tells versions apart; refuses negative numbers."""

    def __init__(self, constant):
        self.constant = tf.Variable(float(constant))

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="values")])
    def sums(self, values):
        with tf.control_dependencies([tf.debugging.assert_non_negative(values)]):
            return {"sums": tf.reduce_sum(values, axis=1) + self.constant}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="seconds")])
    def spin(self, seconds):
        end = tf.timestamp() + tf.cast(tf.reduce_max(seconds), tf.float64)
        turns = tf.while_loop(lambda turn: tf.timestamp() < end, lambda turn: [turn + 1], [0])
        return {"turns": tf.fill(tf.shape(seconds), turns[0])}


@pytest.fixture(scope="session")
def publish_sums():
    """Publishes a version of `_Sum` whose constant is the version's number."""

    def publish(base, version, complete=lambda folder: None):
        model = _Sum(version)
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
def manifest_content():
    return {
        "model": "digits",
        "sizes": list(SIZES),
        "classes": list(CLASSES),
        "input": {"name": "images", "dtype": "uint8", "shape": [None, 8, 8, 1]},
        "latency": {
            "hardware": {"cpu": "a test's"},
            "measurements": [
                {
                    "signature": f"ensemble_{size}",
                    "batch_size": batch_size,
                    "p50_ms": 0.5 * size * batch_size,
                    "p95_ms": 1.0 * size * batch_size,
                    "p99_ms": 2.0 * size * batch_size,
                    "runs": 50,
                }
                for size in SIZES
                for batch_size in (1, 16)
            ],
        },
    }


@pytest.fixture
def manifest_path(tmp_path, manifest_content):
    path = tmp_path / "hne_manifest.json"
    path.write_text(json.dumps(manifest_content))
    return path
