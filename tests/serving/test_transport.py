"""What happens below the requests: size limit, TLS, metrics, and the way out."""

import contextlib
import datetime
import http.client
import ipaddress
import json
import pathlib
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import tensorflow as tf
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from hne_tf.bin import predict, serve
from hne_tf.exported.versions import latest_version_path
from hne_tf.server.servable import Servable
from hne_tf.server.service import Options, start

_MIB = 1024 * 1024


class _CountingProxy:
    """Passes one connection on and counts what the server has taken of it."""

    def __init__(self, target_port):
        self.taken = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._target_port = target_port
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._target_port))
            threading.Thread(target=self._pass, args=(server, client, 0), daemon=True).start()
            self._pass(client, server, 1)

    def _pass(self, source, target, counted):
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                target.sendall(content)
                self.taken += counted * len(content)


def test_an_oversized_request_is_refused_without_being_read(serve, sums_request, catalog):
    channel = serve(max_message_bytes=_MIB, max_rows=_MIB)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    # Eight bytes a row.
    stub.Predict(sums_request(1.0, rows=_MIB // 8 - 100))
    large = sums_request(1.0, rows=64 * _MIB // 8)
    port = int(serve.ports[-1])
    proxy = _CountingProxy(port)
    with grpc.insecure_channel(
        proxy.address, options=[("grpc.max_send_message_length", -1)]
    ) as proxied:
        other = prediction_service_pb2_grpc.PredictionServiceStub(proxied)
        with pytest.raises(grpc.RpcError) as caught:
            other.Predict(large, timeout=30)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in caught.value.details()
        # Some is under way, as much as flow control allows.
        assert proxy.taken < 32 * _MIB
    proxy.close()
    stub.Predict(sums_request(1.0))


class _Authority:
    """Signs certificates for 127.0.0.1."""

    def __init__(self):
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
        self.certificate = self._sign("authority", self._key.public_key(), authority=True)

    def issue(self, name):
        """PEM of a new key and of its certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return pem, self._sign(name, key.public_key(), authority=False)

    def _sign(self, name, public_key, authority):
        now = datetime.datetime.now(datetime.UTC)
        addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """PEM files, and the client's credentials with and without a certificate."""
    folder = tmp_path_factory.mktemp("tls")
    authority = _Authority()
    key, certificate = authority.issue("server")
    for name, content in (("key", key), ("cert", certificate), ("ca", authority.certificate)):
        (folder / f"{name}.pem").write_bytes(content)
    client_key, client_certificate = authority.issue("client")
    (folder / "client_key.pem").write_bytes(client_key)
    (folder / "client_cert.pem").write_bytes(client_certificate)
    known = grpc.ssl_channel_credentials(authority.certificate, client_key, client_certificate)
    return folder, known, grpc.ssl_channel_credentials(authority.certificate)


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def process(sums_path, tls):
    """A server in a process of its own with TLS and metrics: it, its address, reading metrics."""
    folder, _, _ = tls
    port = _free_port()
    started = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "hne_tf.bin.serve",
            f"--model_base_path={sums_path.parent}",
            "--port=0",
            f"--metrics_port={port}",
            f"--tls_certificate={folder / 'cert.pem'}",
            f"--tls_key={folder / 'key.pem'}",
            f"--tls_client_ca={folder / 'ca.pem'}",
            "--rest_port=0",
        ],
        cwd=pathlib.Path(serve.__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def metrics():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as page:
            return page.read().decode()

    try:
        line = started.stdout.readline()
        found = re.search(r"address=(\S+) rest=(\S+)", line)
        assert found, line + started.stderr.read()
        metrics.rest = found[2]
        yield started, found[1], metrics
    finally:
        started.kill()
        started.wait()
        started.stdout.close()
        started.stderr.close()


def _spin(seconds):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "sums"
    request.model_spec.signature_name = "spin"
    request.inputs["seconds"].CopyFrom(tf.make_tensor_proto(np.array([seconds], np.float32)))
    return request


def _until(condition):
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_tls_and_a_known_client_are_asked_for(process, sums_request, tls):
    _, address, _ = process
    _, known, unknown = tls
    with grpc.secure_channel(address, known) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        response = stub.Predict(sums_request(4.0), timeout=20)
        assert tf.make_ndarray(response.outputs["sums"]) == [5.0]
    for channel in (grpc.insecure_channel(address), grpc.secure_channel(address, unknown)):
        with channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.Predict(sums_request(), timeout=20)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_rest_asks_for_tls_and_a_known_client_too(process, tls):
    _, _, metrics = process
    folder, _, _ = tls
    known = ssl.create_default_context(cafile=folder / "ca.pem")
    known.load_cert_chain(folder / "client_cert.pem", folder / "client_key.pem")
    request = urllib.request.Request(
        f"{metrics.rest}/v1/models/sums:predict", b'{"instances": [[1.0, 2.0]]}'
    )
    assert metrics.rest.startswith("https://127.0.0.1:")
    with urllib.request.urlopen(request, timeout=60, context=known) as answer:
        assert json.loads(answer.read()) == {"predictions": [4.0]}
    refused = (ConnectionError, http.client.HTTPException, ssl.SSLError, urllib.error.URLError)
    for unknown in (ssl.create_default_context(cafile=folder / "ca.pem"), None):
        with pytest.raises(refused):
            urllib.request.urlopen(request, timeout=60, context=unknown)
    plain = urllib.request.Request(request.full_url.replace("https", "http"), request.data)
    with pytest.raises(refused):
        urllib.request.urlopen(plain, timeout=60)


@pytest.fixture
def predict_over_tls(base_path, tls, images, tmp_path, capsys):
    """Asks a server that wants a client's certificate: exit code, lines printed and complained."""
    folder, _, _ = tls
    key, certificate, authority = (
        (folder / f"{name}.pem").read_bytes() for name in ("key", "cert", "ca")
    )
    credentials = grpc.ssl_server_credentials([(key, certificate)], authority, True)
    picture = tmp_path / "digit.png"
    Image.fromarray(images[0, ..., 0]).save(picture)
    running = start(
        Servable("digits", latest_version_path(base_path)),
        options=Options(credentials=credentials),
    )

    def ask(**files):
        flags = [f"--{flag}={folder / name}" for flag, name in files.items()]
        given = [f"--server={running.address}", "--model=digits", "--budget_ms=20000"]
        code = predict.run([*given, *flags, str(picture)])
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err.splitlines()

    yield ask
    running.stop(grace_s=0)


def test_hne_predict_shows_a_client_certificate(predict_over_tls):
    code, lines, errors = predict_over_tls(
        tls_ca="ca.pem", tls_certificate="client_cert.pem", tls_key="client_key.pem"
    )
    assert (code, errors) == (0, [])
    assert "class " in lines[0]
    code, lines, errors = predict_over_tls(tls_ca="ca.pem")
    assert (code, lines) == (1, [])
    assert len(errors) == 1


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tls_key": "client_key.pem"}, "takes both --tls_certificate and --tls_key"),
        ({"tls_certificate": "cert.pem"}, "takes both --tls_certificate and --tls_key"),
        (
            {"tls_certificate": "cert.pem", "tls_key": "absent.pem"},
            "--tls_key must be a readable file",
        ),
    ],
)
def test_half_a_client_certificate_is_one_line(predict_over_tls, files, words):
    code, _, errors = predict_over_tls(**files)
    assert code == 1
    (line,) = errors
    assert words in line


# The last test of the process, which it ends.
def test_sigterm_lets_requests_finish_and_refuses_new_ones(process, sums_request, tls):
    server, address, metrics = process
    with grpc.secure_channel(address, tls[1]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        health = health_pb2_grpc.HealthStub(channel)
        running = stub.Predict.future(_spin(2.0))
        _until(lambda: 'hne_server_batch_rows_count{signature="spin"} 1.0' in metrics())
        server.send_signal(signal.SIGTERM)
        _until(
            lambda: (
                health.Check(health_pb2.HealthCheckRequest(), timeout=20).status
                == health_pb2.HealthCheckResponse.NOT_SERVING
            )
        )
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(sums_request(), timeout=20)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in caught.value.details()
        assert not running.done()
        assert tf.make_ndarray(running.result(timeout=20).outputs["turns"])[0] > 0
        assert server.wait(timeout=20) == 0
        assert server.stdout.read() == "hne-serve: stopped\n"
        # gRPC logs the handshakes that failed.
        assert "Traceback" not in server.stderr.read()


def test_tls_without_a_client_authority_takes_any_client(serve, sums_request, tls):
    folder, _, unknown = tls
    pair = ((folder / "key.pem").read_bytes(), (folder / "cert.pem").read_bytes())
    serve(credentials=grpc.ssl_server_credentials([pair]))
    with grpc.secure_channel(f"127.0.0.1:{serve.ports[-1]}", unknown) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        assert stub.Predict(sums_request(), timeout=20).model_spec.version.value == 1


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--tls_certificate=cert.pem"], "both --tls_certificate and --tls_key"),
        (["--tls_client_ca=ca.pem"], "both --tls_certificate and --tls_key"),
        (["--tls_certificate=cert.pem", "--tls_key=absent.pem"], "--tls_key must be a readable"),
        (["--tls_certificate=text", "--tls_key=key.pem"], "--tls_certificate must be a PEM file"),
        (["--tls_certificate=broken.pem", "--tls_key=key.pem"], "TLS certificate or key"),
        (["--max_message_bytes=0"], "--max_message_bytes must be positive"),
        (["--max_queued_requests=-1"], "max_queued_requests"),
        (["--poll_interval_s=-1"], "poll_interval_s"),
        (["--host=300.0.0.1"], "cannot listen on 300.0.0.1"),
        (["--rest_port=-1"], "rest_port"),
        (["--access_log=absent/log"], "must be a file that can be written, got 'absent/log'"),
        (
            ["--tls_certificate=broken.pem", "--tls_key=key.pem", "--rest_port=0"],
            "TLS certificate or key",
        ),
    ],
)
def test_bad_flags_get_one_line(sums_path, tls, monkeypatch, assert_refused, flags, reason):
    folder, _, _ = tls
    (folder / "text").write_text("no certificate")
    (folder / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n")
    monkeypatch.chdir(folder)
    base = f"--model_base_path={sums_path.parent}"
    assert_refused(serve, [base, "--port=0", *flags], reason)


def test_a_taken_metrics_port_gets_one_line(sums_path, assert_refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flag = f"--metrics_port={taken.getsockname()[1]}"
        base = f"--model_base_path={sums_path.parent}"
        assert_refused(serve, [base, "--port=0", flag], "for metrics")
