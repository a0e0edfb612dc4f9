"""Starts and stops a gRPC server that answers as TF Serving does."""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from hne_tf import hardware
from hne_tf.client import transport
from hne_tf.server.admission import PredictionThreads, Slots
from hne_tf.server.anytime.signature import AnytimeModels
from hne_tf.server.batching import Batcher
from hne_tf.server.catalog import Catalog
from hne_tf.server.errors import RequestError
from hne_tf.server.metrics import ServerMetrics
from hne_tf.server.servable import Servable
from hne_tf.server.servicers import ModelService, PredictionService
from hne_tf.server.tracing.tracer import Tracer

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
# Health, metadata and refusals: short, and never behind a prediction.
_CONTROL_THREADS = 4
# Of any other request than a prediction: names alone.
_MOST_CONTROL_BYTES = 256 * 1024
_MOST_WATCHERS = 64
# For the last bytes of answers; health watchers never hang up by themselves.
_LAST_BYTES_S = 1.0


@dataclasses.dataclass(frozen=True)
class Options:
    """How much a server takes on, and how.

    Attributes:
      threads: graphs computed at a time; 0 for as many as there are cores for, see
        `Servable.slots`.
      max_queued_requests: predictions that wait beyond those that can be computed.
      max_rows: rows of a request; with batching no more than those of a batch.
      max_batch_size: rows of a batch; 0 for no batching.
      batch_timeout_micros: how long the first request of a batch waits for others.
      max_message_bytes: size of a request beyond which it is not read.
      credentials: TLS; None for plaintext.
    """

    threads: int = 0
    max_queued_requests: int = 128
    max_rows: int = 128
    max_batch_size: int = 0
    batch_timeout_micros: int = 1000
    max_message_bytes: int = transport.MAX_MESSAGE_BYTES
    credentials: grpc.ServerCredentials | None = None


@dataclasses.dataclass(frozen=True)
class Inside:
    """What answers, for doors other than gRPC.

    Attributes:
      catalog: the versions.
      service: answers predictions.
      predictions: the threads that they run in, which bound them.
      tracer: follows them.
      max_rows: of a request.
      options: of the server.
    """

    catalog: Catalog
    service: PredictionService
    predictions: PredictionThreads
    tracer: Tracer
    max_rows: int
    options: Options


@dataclasses.dataclass(frozen=True)
class RunningServer:
    """A server that accepts requests.

    Attributes:
      host: address it listens on.
      port: port it listens on, the one chosen if any free one was asked for.
      inside: what answers.
      rest_address: what URLs of its REST door begin with; None without one.
    """

    host: str
    port: int
    inside: Inside
    rest_address: str | None = dataclasses.field(default=None, kw_only=True)
    _catalog: Catalog
    _server: grpc.Server
    _health: health.HealthServicer
    _predictions: PredictionThreads
    _anytime: AnytimeModels

    @property
    def address(self) -> str:
        """`host:port`, as a gRPC client takes it."""
        return transport.address(self.host, self.port)

    @property
    def model(self) -> str:
        """Name that requests ask for."""
        return self._catalog.name

    @property
    def version(self) -> int:
        """The version that requests without one are answered by."""
        return self._catalog.served.version

    def stop(self, grace_s: float = 5.0) -> None:
        """Says NOT_SERVING, refuses predictions, lets those held finish, returns when done.

        Args:
          grace_s: how long they have; what is left then is cancelled.
        """
        end = time.monotonic() + grace_s
        self._health.enter_graceful_shutdown()
        # The port stays open so that health checks learn of it.
        self._predictions.drain(grace_s)
        left = max(end - time.monotonic(), 0.0)
        self._server.stop(min(left, _LAST_BYTES_S)).wait()
        self._predictions.shutdown(wait=False)
        self._anytime.close()


def start(
    model: Servable | Catalog,
    host: str = "127.0.0.1",
    port: int = 0,
    options: Options | None = None,
    tracer: Tracer | None = None,
) -> RunningServer:
    """Starts serving and returns at once.

    Args:
      model: a catalog whose versions come and go, or the one version there is.
      host: address to listen on.
      port: port to listen on; 0 for any free one.
      options: `Options()` by default.
      tracer: follows predictions; by default without an access log.

    Raises:
      InputError: if the address cannot be listened on or the TLS files are not PEM.
    """
    options = options or Options()
    catalog = model if isinstance(model, Catalog) else _only(model)
    served = catalog.served
    slots = options.threads or (served.slots if served else hardware.cores())
    batcher = Batcher(
        Slots(slots),
        catalog.metrics,
        options.max_batch_size,
        options.batch_timeout_micros / 1e6,
    )
    predictions = PredictionThreads(
        options.max_queued_requests + slots * max(1, options.max_batch_size)
    )
    catalog.metrics.queue_is(lambda: max(0, predictions.held - batcher.running))
    rows = min(options.max_rows, options.max_batch_size or options.max_rows)
    anytime = AnytimeModels(slots)
    service = PredictionService(catalog, batcher, catalog.metrics, anytime, rows)
    inside = Inside(catalog, service, predictions, tracer or Tracer(), rows, options)
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(_CONTROL_THREADS, thread_name_prefix="control"),
        interceptors=[_Admission(inside)],
        options=[
            ("grpc.max_receive_message_length", options.max_message_bytes),
            ("grpc.max_send_message_length", transport.MAX_MESSAGE_BYTES),
            # Without this two servers can listen on one port and share its requests.
            ("grpc.so_reuseport", 0),
        ],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(catalog), server)
    health_servicer = Health()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    bound = transport.listen(server, transport.address(host, port), options.credentials)
    server.start()
    health_servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    return RunningServer(
        host, bound, inside, catalog, server, health_servicer, predictions, anytime
    )


class _Admission(grpc.ServerInterceptor):
    """Sends predictions to threads of their own, or refuses them without reading them.

    Other requests are parsed only if they are short.

    gRPC asks, and submits to the threads, from one thread: the bound is exact.
    """

    def __init__(self, inside: Inside) -> None:
        def predict(message: bytes, context: grpc.ServicerContext) -> predict_pb2.PredictResponse:
            with inside.tracer.call(context) as trace:
                return inside.service.Predict(message, context, trace)

        predict.experimental_thread_pool = inside.predictions
        self._handler = grpc.unary_unary_rpc_method_handler(
            predict, response_serializer=predict_pb2.PredictResponse.SerializeToString
        )
        self._predictions = inside.predictions
        self._metrics = inside.catalog.metrics
        self._tracer = inside.tracer

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        if handler_call_details.method != _PREDICT:
            handler = continuation(handler_call_details)
            # Streams are health's, whose requests are one string.
            return _short(handler) if handler and handler.unary_unary else handler
        refusal = self._predictions.refusal()
        return self._handler if refusal is None else self._refuse(refusal)

    def _refuse(self, refusal: RequestError) -> grpc.RpcMethodHandler:
        def refuse(requests: object, context: grpc.ServicerContext) -> None:
            del requests
            self._metrics.answered("", refusal.code, 0.0)
            with self._tracer.call(context):
                context.abort(refusal.code, refusal.message)

        # As a stream: a single request would be read before it is refused.
        return grpc.stream_unary_rpc_method_handler(refuse)


class Health(health.HealthServicer):
    """The health of the server as a whole, under the empty name.

    Each watcher has a thread, up to a number; others wait. Without threads, which is
    the base class's default, it sends under a lock that the one thread of all calls
    needs when a watcher leaves: the server hangs for good when one leaves at once.
    """

    def __init__(self) -> None:
        pool = concurrent.futures.ThreadPoolExecutor(_MOST_WATCHERS, thread_name_prefix="watch")
        super().__init__(experimental_non_blocking=False, experimental_thread_pool=pool)

    def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        """Tells every change; of a name that is not known there is only one thing to tell."""
        if not request.service:
            return super().Watch(request, context)
        # The base class would keep every name that is ever asked for.
        status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        return iter([health_pb2.HealthCheckResponse(status=status)])


def _short(handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
    """The same method for short messages alone, which it parses in its own thread."""

    @functools.wraps(handler.unary_unary)
    def answer(message: bytes, context: grpc.ServicerContext) -> Message:
        if len(message) > _MOST_CONTROL_BYTES:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"a request of this method must have at most {_MOST_CONTROL_BYTES} bytes, "
                f"got {len(message)}",
            )
        try:
            request = handler.request_deserializer(message)
        except DecodeError as error:
            context.abort(grpc.StatusCode.INTERNAL, f"the message cannot be parsed: {error}")
        return handler.unary_unary(request, context)

    return grpc.unary_unary_rpc_method_handler(
        answer, response_serializer=handler.response_serializer
    )


def _only(servable: Servable) -> Catalog:
    catalog = Catalog(servable.name, ServerMetrics())
    catalog.publish(servable)
    return catalog
