"""TF Serving's gRPC services, answered in Python from a loaded SavedModel."""

import concurrent.futures
import contextlib
import dataclasses
import os
from collections.abc import Iterator

import grpc
import tensorflow as tf
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from hne_tf.errors import InputError
from serving.catalog import Catalog
from serving.errors import RequestError
from serving.servable import DEFAULT_SIGNATURE, Servable
from serving.transport import MESSAGE_OPTIONS

_SIGNATURE_DEF = "signature_def"
# Details travel in a header, and clients drop an answer whose headers pass 8 KiB.
_MAX_DETAILS = 2000


@dataclasses.dataclass(frozen=True)
class RunningServer:
    """A server that accepts requests.

    Attributes:
      host: address it listens on.
      port: port it listens on, the one chosen if any free one was asked for.
    """

    host: str
    port: int
    _server: grpc.Server
    _health: health.HealthServicer

    @property
    def address(self) -> str:
        """`host:port`, as a gRPC client takes it."""
        return _address(self.host, self.port)

    def stop(self, grace_s: float = 5.0) -> None:
        """Refuses new requests, lets running ones finish for `grace_s`, returns when done."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()


def start(servable: Servable, host: str = "127.0.0.1", port: int = 0) -> RunningServer:
    """Starts serving `servable` and returns at once.

    Args:
      servable: the model.
      host: address to listen on.
      port: port to listen on; 0 for any free one.

    Raises:
      InputError: if the address cannot be listened on.
    """
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(max_workers=max(4, 2 * (os.cpu_count() or 1))),
        # Without this two servers can listen on one port and share its requests.
        options=[*MESSAGE_OPTIONS, ("grpc.so_reuseport", 0)],
    )
    catalog = Catalog(servable)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(catalog), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(catalog), server)
    health_servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    try:
        bound = server.add_insecure_port(_address(host, port))
    except RuntimeError as error:
        raise InputError(f"cannot listen on {_address(host, port)}: {error}") from error
    server.start()
    health_servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    return RunningServer(host, bound, server, health_servicer)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; Classify, Regress and MultiInference are UNIMPLEMENTED."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def Predict(  # noqa: N802
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        """Runs a signature; `RequestError` becomes the call's status."""
        with _status_of_errors(context):
            _check_model_spec(request)
            servable = self._catalog.find(request.model_spec)
            outputs = servable.predict(
                request.model_spec.signature_name, request.inputs, request.output_filter
            )
        response = predict_pb2.PredictResponse(
            outputs={name: tf.make_tensor_proto(array) for name, array in outputs.items()}
        )
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        response.model_spec.signature_name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        return response

    def GetModelMetadata(  # noqa: N802
        self,
        request: get_model_metadata_pb2.GetModelMetadataRequest,
        context: grpc.ServicerContext,
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Returns the signature definitions; `RequestError` becomes the call's status."""
        with _status_of_errors(context):
            _check_model_spec(request)
            fields = list(request.metadata_field)
            if not fields or set(fields) != {_SIGNATURE_DEF}:
                raise RequestError(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"metadata_field must be {_SIGNATURE_DEF!r}, got {fields}",
                )
            servable = self._catalog.find(request.model_spec)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        response.metadata[_SIGNATURE_DEF].Pack(
            get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signature_defs)
        )
        return response


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus; HandleReloadConfigRequest is UNIMPLEMENTED."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def GetModelStatus(  # noqa: N802
        self,
        request: get_model_status_pb2.GetModelStatusRequest,
        context: grpc.ServicerContext,
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Returns the state per version; `RequestError` becomes the call's status."""
        with _status_of_errors(context):
            _check_model_spec(request)
            statuses = self._catalog.statuses(request.model_spec)
        return get_model_status_pb2.GetModelStatusResponse(model_version_status=statuses)


def _check_model_spec(
    request: predict_pb2.PredictRequest
    | get_model_metadata_pb2.GetModelMetadataRequest
    | get_model_status_pb2.GetModelStatusRequest,
) -> None:
    if not request.HasField("model_spec"):
        raise RequestError(
            grpc.StatusCode.INVALID_ARGUMENT, "a request must have a model_spec, got none"
        )


@contextlib.contextmanager
def _status_of_errors(context: grpc.ServicerContext) -> Iterator[None]:
    try:
        yield
    except RequestError as error:
        context.abort(error.code, error.message[:_MAX_DETAILS])


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
