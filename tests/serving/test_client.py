"""The client against a real server."""

import asyncio
import concurrent.futures
import datetime
import ipaddress
import socket
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import CollectorRegistry
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from hne_tf.client.answers import BudgetError
from hne_tf.client.async_client import AsyncBudgetClient, AsyncServingClient
from hne_tf.client.budget_client import BudgetClient, ServingClient
from hne_tf.client.messages import CallError, Signature, TensorSpec
from hne_tf.client.metrics import ClientMetrics
from hne_tf.errors import InputError

_SIGNATURES = ("ensemble_1", "ensemble_2", "ensemble_4", "serving_default")


@pytest.fixture
def client(server):
    with ServingClient(server.address, "digits") as opened:
        yield opened


@pytest.fixture
def silent_address():
    """An address that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("signature", _SIGNATURES)
def test_predict_equals_the_saved_model(client, saved_model, images, signature):
    received = client.predict(images, signature)
    expected = saved_model.signatures[signature](images=tf.constant(images))
    assert set(received) == {"logits", "probabilities"}
    for name, array in received.items():
        np.testing.assert_array_equal(array, expected[name].numpy())


def test_the_asyncio_client_answers_the_same(server, client, images):
    async def ask():
        async with AsyncServingClient(server.address, "digits") as asynchronous:
            info = await asynchronous.info()
            return info, await asynchronous.run("ensemble_2", {"images": images}, ["logits"])

    info, outputs = asyncio.run(ask())
    assert info == client.info()
    assert outputs.version == 7
    assert list(outputs.arrays) == ["logits"]
    expected = client.predict(images, "ensemble_2")["logits"]
    np.testing.assert_array_equal(outputs.arrays["logits"], expected)


def test_info_lists_signatures_with_their_specs(client):
    assert client.info().version == 7
    signatures = client.info().signatures
    assert sorted(signatures) == sorted([*_SIGNATURES, "step_2", "anytime"])
    assert signatures["ensemble_2"] == Signature(
        inputs={"images": TensorSpec("uint8", (None, 8, 8, 1))},
        outputs={
            "logits": TensorSpec("float32", (None, 10)),
            "probabilities": TensorSpec("float32", (None, 10)),
        },
    )


def test_answers_beyond_grpcs_own_limit_arrive(serve):
    rows = 1_200_000
    serve(max_rows=rows)
    with ServingClient(f"127.0.0.1:{serve.ports[-1]}", "sums") as client:
        values = {"values": np.zeros([rows, 2], np.float32)}
        assert client.run("serving_default", values).arrays["sums"].nbytes > 4 * 1024 * 1024


def test_an_environment_proxy_is_not_asked(server, images, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with ServingClient(server.address, "digits") as client:
        assert client.predict(images, "ensemble_1")["logits"].shape == (5, 10)


def test_a_server_that_is_down_is_named():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with (
            ServingClient(address, "digits") as client,
            pytest.raises(InputError, match=f"no server can be reached at {address}"),
        ):
            client.info()


def test_a_server_that_hangs_is_given_up(silent_address, images):
    with (
        ServingClient(silent_address, "digits") as client,
        pytest.raises(InputError, match=r"gave no answer within 0\.3 s"),
    ):
        client.predict(images, "ensemble_1", timeout_s=0.3)


@pytest.mark.parametrize(
    ("model", "signature", "code"),
    [("unknown", "ensemble_1", "NOT_FOUND"), ("digits", "ensemble_3", "FAILED_PRECONDITION")],
)
def test_a_refusal_carries_code_and_reason_in_one_line(server, images, model, signature, code):
    with ServingClient(server.address, model) as client:
        with pytest.raises(InputError, match=f"{model}.*{code}") as caught:
            client.predict(images, signature)
        assert "\n" not in str(caught.value)


def test_a_budget_is_answered_as_the_saved_model_does(server, saved_model, images):
    with BudgetClient(server.address, "digits") as client:
        client.measure(images, rounds=3)
        answer = client.predict(images, budget_ms=10_000.0)
        estimates = client.estimates_ms(len(images))
    assert answer.size == 4
    assert [(attempt.size, attempt.code) for attempt in answer.attempts] == [(4, "OK")]
    assert 0 < answer.attempts[0].latency_ms <= answer.latency_ms
    assert list(estimates) == [1, 2, 4]
    assert list(estimates.values()) == sorted(estimates.values())
    expected = saved_model.signatures["ensemble_4"](images=tf.constant(images))
    np.testing.assert_array_equal(answer.probabilities, expected["probabilities"].numpy())


def test_a_manifest_is_where_estimates_start(server, manifest):
    with BudgetClient(server.address, "digits", manifest=manifest) as client:
        client.learn()
        assert client.estimates_ms(1) == {1: 1.0, 2: 2.0, 4: 4.0}
        assert client.estimates_ms(16) == {1: 16.0, 2: 32.0, 4: 64.0}


def test_threads_share_a_client(server, images):
    answers = []

    def ask():
        answers.extend(client.predict(images, 10_000.0) for _ in range(20))

    with BudgetClient(server.address, "digits") as client:
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        total = sum(
            client.registry.get_sample_value(
                "hne_client_answers_total", {"model": "digits", "size": str(size)}
            )
            or 0
            for size in (1, 2, 4)
        )
    assert len(answers) == total == 160


def test_clients_share_a_registry_through_their_metrics(server, images):
    registry = CollectorRegistry()
    metrics = ClientMetrics(registry)
    for _ in range(2):
        with BudgetClient(server.address, "digits", registry=metrics) as client:
            assert client.registry is registry
            client.predict(images, 10_000.0)
    text = "hne_client_answers_total"
    assert registry.get_sample_value(text, {"model": "digits", "size": "1"}) == 2


def test_an_unknown_model_is_said_within_the_budget(server, images):
    with (
        BudgetClient(server.address, "unknown") as client,
        pytest.raises(BudgetError, match=r"unknown.*NOT_FOUND"),
    ):
        client.predict(images, 10_000.0)


class _Guard(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers those who know the word."""

    def Predict(self, request, context):  # noqa: N802
        if dict(context.invocation_metadata()).get("authorization") != "Bearer word 2":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who is there?")
        return predict_pb2.PredictResponse()


@pytest.fixture
def guarded():
    """An encrypted server: its address and the certificate that signs its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Guard(), server)
    credentials = grpc.ssl_server_credentials([(private, certificate)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"127.0.0.1:{port}", certificate
    server.stop(0)


def test_tls_and_fresh_metadata(guarded, images):
    address, certificate = guarded
    words = iter(["word 1", "word 2"])
    with ServingClient(
        address,
        "digits",
        credentials=grpc.ssl_channel_credentials(certificate),
        metadata=lambda: [("authorization", f"Bearer {next(words)}")],
    ) as client:
        with pytest.raises(CallError, match="UNAUTHENTICATED: who is there") as caught:
            client.predict(images, "ensemble_1")
        assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
        assert client.predict(images, "ensemble_1") == {}


def test_tls_over_asyncio(guarded, images):
    address, certificate = guarded

    async def ask():
        async with AsyncServingClient(
            address,
            "digits",
            credentials=grpc.ssl_channel_credentials(certificate),
            metadata=[("authorization", "Bearer word 2")],
        ) as client:
            return await client.run("ensemble_1", {"images": images})

    assert asyncio.run(ask()).arrays == {}


def test_an_encrypted_server_does_not_answer_in_plain_text(guarded, images):
    with (
        ServingClient(guarded[0], "digits") as client,
        pytest.raises(CallError, match="no server can be reached"),
    ):
        client.predict(images, "ensemble_1")


def test_a_closed_client_says_so(address, images):
    client = BudgetClient(address, "digits")
    client.predict(images, 10_000.0)
    client.close()
    with pytest.raises(BudgetError, match=r"a client must be open, got a call .* after close\(\)"):
        client.predict(images, 10_000.0)


def test_a_closed_asyncio_client_says_so(service, address, images):
    over = threading.Event()
    service.fault = lambda name, call: over.wait(30) and None

    async def ask():
        client = AsyncBudgetClient(address, "digits")
        pending = asyncio.create_task(client.predict(images, 20_000.0))
        while not service.calls:
            await asyncio.sleep(0.01)
        await client.close()
        # Also to those that wait.
        with pytest.raises(BudgetError, match="a client must be open"):
            await pending
        with pytest.raises(BudgetError, match="a client must be open"):
            await client.predict(images, 20_000.0)
        assert client._latencies.choose(1, 1.0).in_flight == 0

    asyncio.run(ask())
    over.set()


def test_a_cancelled_task_is_cancelled(service, address, images):
    over = threading.Event()
    service.fault = lambda name, call: over.wait(30) and None

    async def ask():
        async with AsyncBudgetClient(address, "digits") as client:
            pending = asyncio.create_task(client.predict(images, 20_000.0))
            while not service.calls:
                await asyncio.sleep(0.01)
            pending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pending
            assert client._latencies.choose(1, 1.0).in_flight == 0

    asyncio.run(ask())
    over.set()
