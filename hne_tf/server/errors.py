"""The error that answers a request with a gRPC status."""

import grpc


class RequestError(Exception):
    """A request that cannot be answered.

    Attributes:
      code: the gRPC status code that TF Serving gives for the same request.
      message: the rule that the request broke and what it held instead.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
