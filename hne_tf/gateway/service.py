"""The gateway's side towards clients: TF Serving's API, passed on as it comes."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Sequence

import grpc
import numpy as np
from google.protobuf.message import Message

from hne_tf.gateway import messages
from hne_tf.gateway.anytime import LEAVES, Answered, Answerer
from hne_tf.gateway.metrics import GatewayMetrics
from hne_tf.gateway.models import Models, counted_rows
from hne_tf.gateway.upstreams import CallFailedError, Metadata, Reply, Upstreams, passed
from hne_tf.server.anytime import budgets
from hne_tf.server.errors import RequestError

_SERVING = "/tensorflow.serving."
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
# HealthCheckResponse of status NOT_SERVING.
_NOT_SERVING = b"\x08\x02"
# Methods that read only, so that another upstream may be asked again.
_READING = frozenset(
    {
        *(f"{_SERVING}PredictionService/{name}" for name in ("Predict", "Classify", "Regress")),
        *(f"{_SERVING}PredictionService/{name}" for name in ("MultiInference", "GetModelMetadata")),
        f"{_SERVING}ModelService/GetModelStatus",
        _HEALTH_CHECK,
    }
)
# Details travel in a header, and clients drop an answer whose headers pass 8 KiB.
_MAX_DETAILS = 2000

Context = grpc.aio.ServicerContext


class GatewayService(grpc.GenericRpcHandler):
    """Answers signature `anytime`, and passes every other request through.

    Args:
      upstreams: where requests go.
      models: what is known of the models there.
      answerer: answers `anytime`.
      metrics: told of every prediction.
      most: predictions that are under way at a time; beyond it they are refused.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        models: Models,
        answerer: Answerer,
        metrics: GatewayMetrics,
        most: int,
    ) -> None:
        self._upstreams = upstreams
        self._models = models
        self._answerer = answerer
        self._metrics = metrics
        self._most = most
        self._held = 0
        self._closed = False
        metrics.in_flight.set_function(lambda: self._held)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """The handler of a method; messages stay bytes."""
        method = handler_call_details.method
        if method == messages.PREDICT:
            return grpc.unary_unary_rpc_method_handler(self._predict)
        if method in _READING:
            return grpc.unary_unary_rpc_method_handler(functools.partial(self._pass, method))
        # A method of any kind is a stream to a stream.
        return grpc.stream_stream_rpc_method_handler(functools.partial(self._stream, method))

    async def drain(self, timeout_s: float) -> None:
        """Says NOT_SERVING, refuses predictions and waits for those that are held."""
        self._closed = True
        end_s = time.perf_counter() + timeout_s
        while self._held and time.perf_counter() < end_s:
            await asyncio.sleep(0.01)

    async def _predict(self, message: bytes, context: Context) -> bytes:
        started_s = time.perf_counter()
        code, signature = grpc.StatusCode.CANCELLED, ""
        self._held += 1
        try:
            self._admit()
            spec = messages.model_spec(message)
            if spec is not None:
                signature = self._known_signature(spec)
            if spec is not None and spec.signature_name == budgets.ANYTIME:
                signature = budgets.ANYTIME
                reply = await self._anytime(spec, message, context, started_s)
            else:
                reply = await self._predict_as_asked(spec, message, context)
            code = grpc.StatusCode.OK
        except (CallFailedError, RequestError) as error:
            code = error.code
            await _abort(context, error)
        finally:
            self._held -= 1
            self._metrics.answered(signature, code, time.perf_counter() - started_s)
        return await _give(context, reply)

    def _admit(self) -> None:
        if self._closed:
            raise RequestError(grpc.StatusCode.UNAVAILABLE, "the gateway is shutting down")
        if self._held > self._most:
            raise RequestError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the gateway is busy: it holds at most {self._most} predictions",
            )

    def _known_signature(self, spec: Message) -> str:
        model = self._models.known(spec)
        name = spec.signature_name
        return name if model is not None and name in model.names else ""

    async def _predict_as_asked(
        self, spec: Message | None, message: bytes, context: Context
    ) -> Reply:
        """Passes a request on, and takes the time of an ensemble whose model is known."""
        watch = None
        model = None if spec is None else self._models.known(spec)
        size = budgets.ensemble_size(spec.signature_name) if model else None
        if size is not None and size in model.sizes:
            # What cannot be read is the upstream's to refuse.
            with contextlib.suppress(RequestError):
                rows = counted_rows(messages.predict_request(message))
                watch = functools.partial(model.watched, size=size, rows=rows)
        return await self._upstreams.call(
            messages.PREDICT,
            message,
            context.time_remaining(),
            passed(context.invocation_metadata()),
            again=True,
            watch=watch,
        )

    async def _anytime(
        self, spec: Message, message: bytes, context: Context, started_s: float
    ) -> Reply:
        pairs = context.invocation_metadata()
        remaining_s = budgets.seconds_left(context.time_remaining())
        if remaining_s == 0:
            raise RequestError(
                grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the work started"
            )
        end_s = budgets.end_s(started_s, remaining_s, budgets.from_metadata(pairs))
        metadata = passed(pairs)
        if not await self._answerer.takes(spec, metadata, end_s):
            return await self._predict_as_asked(spec, message, context)
        request = messages.predict_request(message)
        wanted = _wanted(request, self._answerer.outputs)
        answered = await self._answerer.answer(request, metadata, end_s)
        self._metrics.answered_anytime(answered.size, answered.total)
        return _reply(answered, wanted, 1000 * (time.perf_counter() - started_s))

    async def _pass(self, method: str, message: bytes, context: Context) -> bytes:
        if self._closed and method == _HEALTH_CHECK:
            return _NOT_SERVING
        try:
            reply = await self._upstreams.call(
                method,
                message,
                context.time_remaining(),
                passed(context.invocation_metadata()),
                again=True,
            )
        except CallFailedError as error:
            await _abort(context, error)
        return await _give(context, reply)

    async def _stream(
        self, method: str, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        metadata: Metadata = passed(context.invocation_metadata())
        upstream = self._upstreams.ordered()[0]
        call = upstream.stream(method, requests, context.time_remaining(), metadata)
        try:
            await context.send_initial_metadata(passed(await call.initial_metadata() or ()))
            async for message in call:
                yield message
            context.set_trailing_metadata(passed(await call.trailing_metadata() or ()))
        except grpc.aio.AioRpcError as error:
            trailing = passed(error.trailing_metadata() or ())
            await _abort(context, CallFailedError(error.code(), error.details() or "", trailing))
        finally:
            call.cancel()


def _wanted(request: Message, outputs: Sequence[str]) -> Sequence[str]:
    """Those of the outputs that a request of `anytime` is to be answered with.

    Raises:
      RequestError: INVALID_ARGUMENT for an unknown or repeated name.
    """
    names = list(request.output_filter)
    for position, name in enumerate(names):
        if name not in outputs:
            rule = f"output_filter must name {list(outputs)}, got {name!r}"
            raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, rule)
        if name in names[:position]:
            rule = f"output_filter must not repeat a name, got {name!r} twice"
            raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, rule)
    return names or outputs


def _reply(answered: Answered, wanted: Sequence[str], latency_ms: float) -> Reply:
    """The upstream's answer with the outputs of `anytime`."""
    response = answered.response
    response.model_spec.signature_name = budgets.ANYTIME
    probabilities = response.outputs[budgets.PROBABILITIES]
    dimensions = probabilities.tensor_shape.dim
    rows = dimensions[0].size if dimensions else 1
    for name in [name for name in response.outputs if name != budgets.PROBABILITIES]:
        del response.outputs[name]
    for name, value in ((budgets.SIZE, answered.size), (budgets.LATENCY, latency_ms)):
        if name in wanted:
            whole = name == budgets.SIZE
            messages.set_values(response.outputs[name], [value] * rows, whole)
    if LEAVES in wanted:
        leaves = np.tile(np.array(answered.leaves, np.int32), (rows, 1, 1))
        messages.set_array(response.outputs[LEAVES], leaves)
    if budgets.PROBABILITIES not in wanted:
        del response.outputs[budgets.PROBABILITIES]
    return Reply(response.SerializeToString(), answered.reply.initial, answered.reply.trailing)


async def _give(context: Context, reply: Reply) -> bytes:
    if reply.initial:
        await context.send_initial_metadata(reply.initial)
    if reply.trailing:
        context.set_trailing_metadata(reply.trailing)
    return reply.message


async def _abort(context: Context, error: CallFailedError | RequestError) -> None:
    if isinstance(error, CallFailedError):
        await context.abort(error.code, error.details, error.trailing)
    await context.abort(error.code, error.message[:_MAX_DETAILS])
