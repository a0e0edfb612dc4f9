"""The client against a real server."""

import socket

import numpy as np
import pytest
import tensorflow as tf

from hne_tf.errors import InputError
from serving.client import ServingClient, Signature, TensorSpec

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


def test_metadata_lists_signatures_with_their_specs(client):
    signatures = client.metadata()
    assert sorted(signatures) == sorted([*_SIGNATURES, "step_2"])
    assert signatures["ensemble_2"] == Signature(
        inputs={"images": TensorSpec("uint8", (None, 8, 8, 1))},
        outputs={
            "logits": TensorSpec("float32", (None, 10)),
            "probabilities": TensorSpec("float32", (None, 10)),
        },
    )


def test_answers_beyond_grpcs_own_limit_arrive(client, images):
    answer = client.predict(np.repeat(images, 15_000, axis=0), "ensemble_1")
    assert sum(array.nbytes for array in answer.values()) > 4 * 1024 * 1024


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
            client.metadata()


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
