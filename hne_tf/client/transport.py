"""gRPC settings that the server and the client share."""

# gRPC's own limit is 4 MiB, less than 32 pictures of 224 x 224; beyond it calls
# fail with RESOURCE_EXHAUSTED, which reads as if the server were overloaded.
MAX_MESSAGE_BYTES = 256 * 1024 * 1024

MESSAGE_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)


def address(host: str, port: int) -> str:
    """`host:port`, as gRPC takes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
