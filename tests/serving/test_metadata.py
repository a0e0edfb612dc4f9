"""Which metadata goes where."""

import grpc
import numpy as np
import pytest

from hne_tf.client.anytime_client import AnytimeClient
from hne_tf.client.async_client import AsyncBudgetClient, AsyncServingClient
from hne_tf.client.budget_client import BudgetClient, ServingClient
from hne_tf.client.metadata import MetadataSource, is_loopback
from hne_tf.errors import InputError

_BEARER = [("authorization", "Bearer word")]
_ELSEWHERE = "10.0.0.1:8500"


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:8500",
        "127.8.8.8:8500",
        "127.0.0.1",
        "localhost:8500",
        "LOCALHOST",
        "[::1]:8500",
        "[::1]",
        "::1",
        "dns:localhost:8500",
        "dns:///localhost:8500",
        "ipv4:127.0.0.1:8500",
        "ipv4:127.0.0.1:8500,127.0.0.2:8500",
        "ipv6:[::1]:8500",
        "unix:/run/server",
        "unix-abstract:server",
    ],
)
def test_this_machine_is_known(target):
    assert is_loopback(target)


@pytest.mark.parametrize(
    "target",
    [
        _ELSEWHERE,
        "0.0.0.0:8500",
        "[::]:8500",
        "example.org:8500",
        "localhost.example.org:8500",
        "127.0.0.1.example.org:8500",
        "dns:///example.org:8500",
        "dns://8.8.8.8/localhost:8500",
        "ipv4:127.0.0.1:8500,10.0.0.1:8500",
        "ipv6:[2001:db8::1]:8500",
        "xds:///localhost",
        "localhost:8500@example.org",
        "",
    ],
)
def test_other_machines_are_not_this_one(target):
    assert not is_loopback(target)


@pytest.mark.parametrize(
    "pair",
    [
        ("authorization", "Bearer word"),
        ("authorization", "word"),
        ("proxy-authorization", "Basic d29yZA=="),
        ("x-api-key", "word"),
        ("cookie", "session=word"),
        ("x-auth-token", "word"),
        ("x-anything", "bearer word"),
        ("x-token-bin", b"word"),
    ],
)
def test_secrets_are_refused_over_plaintext_to_other_machines(pair):
    rule = rf"metadata '{pair[0]}' must go over TLS .* got plaintext to '{_ELSEWHERE}'"
    with pytest.raises(InputError, match=rule) as caught:
        MetadataSource([pair], _ELSEWHERE, encrypted=False, plaintext_secrets=False)
    assert "word" not in str(caught.value)
    for allowed in (
        MetadataSource([pair], _ELSEWHERE, encrypted=True, plaintext_secrets=False),
        MetadataSource([pair], _ELSEWHERE, encrypted=False, plaintext_secrets=True),
        MetadataSource([pair], "localhost:8500", encrypted=False, plaintext_secrets=False),
    ):
        assert allowed.pairs() == (pair,)


def test_other_metadata_goes_anywhere():
    pairs = (("x-request-id", "7"), ("traceparent", "00-ab-cd-01"))
    source = MetadataSource(pairs, _ELSEWHERE, encrypted=False, plaintext_secrets=False)
    assert source.pairs() == pairs


@pytest.mark.parametrize(
    "pair",
    [
        ("Key", "word"),
        ("a key", "word"),
        ("", "word"),
        ("key", 7),
        ("key", "line\nbreak"),
        ("key", "wörd"),
        ("key", b"word"),
        ("key-bin", "word"),
        ("key",),
        "key",
        None,
    ],
)
def test_metadata_that_grpc_does_not_take_is_refused(pair):
    with pytest.raises(InputError, match="metadata must be pairs"):
        MetadataSource([pair], "localhost:8500", encrypted=False, plaintext_secrets=False)


@pytest.mark.parametrize(
    "make", [ServingClient, BudgetClient, AsyncServingClient, AsyncBudgetClient, AnytimeClient]
)
def test_every_client_refuses(make, manifest):
    arguments = (
        (_ELSEWHERE, "digits", manifest) if make is AnytimeClient else (_ELSEWHERE, "digits")
    )
    with pytest.raises(InputError, match="must go over TLS"):
        make(*arguments, metadata=_BEARER)
    if not make.__name__.startswith("Async"):
        make(*arguments, metadata=_BEARER, plaintext_secrets=True).close()
        make(*arguments, metadata=_BEARER, credentials=grpc.ssl_channel_credentials()).close()


def test_fresh_metadata_is_held_back_before_a_call():
    asked = []

    def fresh():
        asked.append(1)
        return _BEARER

    with ServingClient(_ELSEWHERE, "digits", metadata=fresh) as client:
        assert asked == []
        with pytest.raises(InputError, match="must go over TLS"):
            client.run("ensemble_1", {"images": np.zeros([1, 8, 8, 1], np.uint8)})
        with pytest.raises(InputError, match="must go over TLS"):
            client.info()


def test_secrets_go_to_this_machine(service, address, images):
    with BudgetClient(address, "digits", metadata=_BEARER) as client:
        client.predict(images, 10_000.0)
    assert service.pairs["authorization"] == "Bearer word"
