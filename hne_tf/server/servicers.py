"""TF Serving's services, answered in Python from the versions of a catalog."""

import contextlib
import time
from collections.abc import Iterator

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from hne_tf.client import messages
from hne_tf.server import wire
from hne_tf.server.admission import Caller
from hne_tf.server.anytime import budgets
from hne_tf.server.anytime.signature import AnytimeModels, AnytimeSignature
from hne_tf.server.batching import Arrays, Batcher
from hne_tf.server.catalog import Catalog
from hne_tf.server.errors import RequestError
from hne_tf.server.metrics import ServerMetrics
from hne_tf.server.tracing.trace import Trace

_SIGNATURE_DEF = "signature_def"
# Details travel in a header, and clients drop an answer whose headers pass 8 KiB.
_MAX_DETAILS = 2000
# Of a request besides its rows: names, shapes, filters.
_MOST_OTHER_BYTES = 256 * 1024


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; Classify, Regress and MultiInference are UNIMPLEMENTED.

    To the ensembles of a model it adds signature `anytime`, see `server.anytime`.

    Args:
      catalog: the versions that answer.
      batcher: runs the graphs.
      metrics: told of every prediction.
      anytime: adds signature `anytime` to the versions.
      max_rows: rows of a request; with the model's own sizes they bound its bytes.
    """

    def __init__(
        self,
        catalog: Catalog,
        batcher: Batcher,
        metrics: ServerMetrics,
        anytime: AnytimeModels,
        max_rows: int,
    ) -> None:
        self._catalog = catalog
        self._batcher = batcher
        self._metrics = metrics
        self._anytime = anytime
        self._max_rows = max_rows

    def Predict(  # noqa: N802
        self, message: bytes, context: grpc.ServicerContext, trace: Trace | None = None
    ) -> predict_pb2.PredictResponse:
        """Runs a signature; `RequestError` becomes the call's status.

        Args:
          message: a serialised PredictRequest. gRPC would parse it in the one
            thread that serves all calls, and log a traceback for anything else.
          context: the call's.
          trace: is told of the prediction.
        """
        try:
            return self.answer(message, Caller(context), trace)
        except RequestError as error:
            context.abort(error.code, error.message[:_MAX_DETAILS])

    def answer(
        self, message: bytes, call: Caller, trace: Trace | None = None
    ) -> predict_pb2.PredictResponse:
        """The answer to a serialised PredictRequest; `trace` is told what is found in it.

        Raises:
          RequestError: with the status of the call.
        """
        started = time.perf_counter()
        trace = trace or Trace()
        found = ""
        # What grpc makes of an exception that is no RequestError.
        code = grpc.StatusCode.UNKNOWN
        try:
            call.check()
            self._check_bytes(message)
            request = _parse(message)
            _check_model_spec(request)
            with self._catalog.lease(request.model_spec) as servable:
                signature = self._anytime.of(servable).signature(
                    servable, request.model_spec.signature_name
                )
                found = signature.name
                trace.found(found, servable.version)
                self._metrics.begins(found)
                arrays = signature.checks.inputs(request.inputs, self._max_rows)
                trace.took(arrays.values())
                wanted = signature.checks.outputs(request.output_filter)
                if isinstance(signature, AnytimeSignature):
                    outputs = self._run_anytime(signature, arrays, call, started)
                    trace.size = int(outputs[budgets.SIZE][0])
                else:
                    outputs = self._batcher.run(signature, arrays, call)
            response = _response({name: outputs[name] for name in wanted})
            response.model_spec.name = servable.name
            response.model_spec.version.value = servable.version
            response.model_spec.signature_name = found
            code = grpc.StatusCode.OK
            return response
        except RequestError as error:
            code = error.code
            raise
        finally:
            self._metrics.answered(found, code, time.perf_counter() - started, trace.door)

    def _run_anytime(
        self, signature: AnytimeSignature, arrays: Arrays, call: Caller, started_s: float
    ) -> Arrays:
        end_s = budgets.end_s(started_s, call.remaining_s, call.budget_ms)
        outputs = self._batcher.run(signature, arrays, call, end_s)
        sizes = outputs[budgets.SIZE]
        self._metrics.answered_anytime(int(sizes[0]))
        latency_ms = 1000 * (time.perf_counter() - started_s)
        return {**outputs, budgets.LATENCY: np.full(len(sizes), latency_ms, np.float32)}

    def _check_bytes(self, message: bytes) -> None:
        """Refuses, before it is parsed, what is larger than any request that can be answered."""
        served = self._catalog.served
        if served is None or served.row_bytes is None:
            return
        most = _MOST_OTHER_BYTES + self._max_rows * served.row_bytes
        if len(message) > most:
            raise RequestError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"a request of at most {self._max_rows} rows must have at most {most} bytes, "
                f"got {len(message)}",
            )

    def GetModelMetadata(  # noqa: N802
        self,
        request: get_model_metadata_pb2.GetModelMetadataRequest,
        context: grpc.ServicerContext,
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Returns the signature definitions; `RequestError` becomes the call's status."""
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with _status_of_errors(context):
            _check_model_spec(request)
            fields = list(request.metadata_field)
            if not fields or set(fields) != {_SIGNATURE_DEF}:
                raise RequestError(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"metadata_field must be {_SIGNATURE_DEF!r}, got {fields}",
                )
            with self._catalog.lease(request.model_spec) as servable:
                response.model_spec.name = servable.name
                response.model_spec.version.value = servable.version
                definitions = servable.signature_defs | self._anytime.of(servable).definitions
                response.metadata[_SIGNATURE_DEF].Pack(
                    get_model_metadata_pb2.SignatureDefMap(signature_def=definitions)
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


def _parse(message: bytes) -> predict_pb2.PredictRequest:
    wire.check_fields(message)
    try:
        return predict_pb2.PredictRequest.FromString(message)
    except DecodeError as error:
        # gRPC's own code for this, in every language.
        raise RequestError(
            grpc.StatusCode.INTERNAL, f"the message must be a PredictRequest: {error}"
        ) from error


def _response(outputs: Arrays) -> predict_pb2.PredictResponse:
    response = predict_pb2.PredictResponse()
    for name, array in outputs.items():
        messages.write_tensor(response.outputs[name], array)
    return response


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
