"""gRPC settings and addresses that servers and clients share."""

import typing

from hne_tf.errors import InputError

if typing.TYPE_CHECKING:
    import grpc

# gRPC's own limit is 4 MiB, less than 32 pictures of 224 x 224; beyond it calls
# fail with RESOURCE_EXHAUSTED, which reads as if the server were overloaded.
MAX_MESSAGE_BYTES = 256 * 1024 * 1024

MESSAGE_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)

CHANNEL_OPTIONS = (
    *MESSAGE_OPTIONS,
    # A proxy from the environment would be asked even for this machine.
    ("grpc.enable_http_proxy", 0),
    # One connection to each server behind the name, not one to the first of them.
    ("grpc.lb_policy_name", "round_robin"),
    # gRPC's own back-off grows to minutes, long after a server has come back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def address(host: str, port: int) -> str:
    """`host:port`, as gRPC takes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(
    server: "grpc.Server | grpc.aio.Server",
    at: str,
    credentials: "grpc.ServerCredentials | None",
) -> int:
    """Opens a server's port, in plaintext without credentials; returns the port.

    Raises:
      InputError: if the address cannot be listened on or the credentials are not PEM.
    """
    try:
        if credentials is None:
            return server.add_insecure_port(at)
        return server.add_secure_port(at, credentials)
    except RuntimeError as error:
        tls = "" if credentials is None else ", or the TLS certificate or key is invalid"
        raise InputError(f"cannot listen on {at}: {error}{tls}") from error
