"""Metadata that goes with every call, and where the secrets in it may go."""

import ipaddress
import re
from collections.abc import Callable, Sequence

from hne_tf.errors import InputError

Pairs = Sequence[tuple[str, str | bytes]]
CallMetadata = Pairs | Callable[[], Pairs]

_SECRET_KEY = re.compile(r"authorization|cookie|token|secret|password|credential|api[-_]?key")
_SECRET_VALUE = re.compile(r"\s*(bearer|basic)\s", re.IGNORECASE)
_SCHEME = re.compile(r"(ipv4|ipv6|dns|unix|unix-abstract|vsock|xds):(.*)", re.DOTALL)


class MetadataSource:
    """Gives the metadata of each call.

    A secret is refused unless the connection is encrypted or stays on this machine.
    A secret is metadata whose key speaks of authorization, a cookie, a token, a
    password, a credential or an API key, or whose value begins with `Bearer` or
    `Basic`.

    Args:
      metadata: pairs of lower-case key and value, or a callable that gives fresh ones.
      target: of the connection, as gRPC takes it.
      encrypted: whether the connection is.
      plaintext_secrets: whether secrets may go anywhere unencrypted.

    Raises:
      InputError: for a secret that may not go there, or pairs that gRPC does not take.
    """

    def __init__(
        self, metadata: CallMetadata, target: str, encrypted: bool, plaintext_secrets: bool
    ) -> None:
        self._metadata = metadata
        self._target = target
        self._private = encrypted or plaintext_secrets or is_loopback(target)
        if not callable(metadata):
            # Mistakes show before the first call.
            self.pairs()

    def pairs(self) -> tuple[tuple[str, str | bytes], ...]:
        """The pairs of the next call.

        Raises:
          InputError: see the class.
        """
        pairs = tuple(self._metadata() if callable(self._metadata) else self._metadata)
        for pair in pairs:
            _check_pair(pair)
            if not self._private and _is_secret(*pair):
                raise InputError(
                    f"metadata {pair[0]!r} must go over TLS (credentials=...) or to this machine, "
                    f"got plaintext to {self._target!r}; plaintext_secrets=True allows it"
                )
        return pairs


def is_loopback(target: str) -> bool:
    """Whether all addresses of a gRPC target are this machine's own; False if unsure."""
    match = _SCHEME.fullmatch(target)
    scheme, rest = match.groups() if match else ("dns", target)
    if scheme in ("unix", "unix-abstract"):
        return True
    if scheme == "dns":
        # An authority, as in dns://8.8.8.8/name, is another machine that resolves the name.
        rest = rest.removeprefix("///")
        return not rest.startswith("/") and _is_loopback_host(_host(rest))
    if scheme in ("ipv4", "ipv6"):
        return all(_is_loopback_host(_host(address)) for address in rest.split(","))
    return False


def _host(address: str) -> str:
    """The host of `host`, `host:port`, `[host]` or `[host]:port`."""
    match = re.fullmatch(r"\[([^\]]*)\](?::\d+)?|([^:]*)(?::\d+)?", address)
    return (match.group(1) or match.group(2) or "") if match else address


def _is_loopback_host(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _check_pair(pair: tuple[str, str | bytes]) -> None:
    key, value = pair if isinstance(pair, tuple) and len(pair) == 2 else (None, None)
    binary = isinstance(key, str) and key.endswith("-bin")
    if not (
        isinstance(key, str)
        and re.fullmatch(r"[0-9a-z_.-]+", key)
        and isinstance(value, bytes if binary else str)
        and (binary or re.fullmatch(r"[ -~]*", value))
    ):
        # The value may be a secret, so it is not repeated.
        raise InputError(
            "metadata must be pairs of a key, in lower case, and a value in printable ASCII, "
            f"or bytes where the key ends in -bin, got the key {key!r} with a value of type "
            f"{type(value).__name__}"
        )


def _is_secret(key: str, value: str | bytes) -> bool:
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return bool(_SECRET_KEY.search(key) or _SECRET_VALUE.match(text))
