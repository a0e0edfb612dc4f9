"""Answers a request over HTTP, from its first line to its last byte."""

import asyncio
import time
from collections.abc import Mapping

import grpc
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2

from hne_tf.errors import extra
from hne_tf.server.catalog import Catalog
from hne_tf.server.errors import RequestError
from hne_tf.server.rest import answers, requests, routes
from hne_tf.server.rest.bounds import Bounds
from hne_tf.server.rest.caller import BUDGET_HEADER, HttpCaller, budget_ms
from hne_tf.server.rest.routes import Ask
from hne_tf.server.servable import DEFAULT_SIGNATURE
from hne_tf.server.service import Inside
from hne_tf.server.tracing.trace import Trace

with extra("rest"):
    import aiohttp
    from aiohttp import web

_JSON = "application/json"
# From the headers of a request to the end of its body.
_BODY_S = 30.0


class Handlers:
    """One coroutine per request; predictions run in the threads that gRPC's run in.

    Args:
      inside: what answers.
    """

    def __init__(self, inside: Inside) -> None:
        self._inside = inside
        self._reading = 0

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """The answer to any request, errors included."""
        pairs = [(key.lower(), value) for key, value in request.headers.items()]
        trace = self._inside.tracer.begin(pairs, "rest", _peer(request))
        try:
            body, status = await self._answer(request, trace), 200
        except RequestError as error:
            body, status = answers.failure(error.message), answers.status(error)
        headers = dict(trace.pairs())
        return web.Response(body=body, status=status, content_type=_JSON, headers=headers)

    async def _answer(self, request: web.BaseRequest, trace: Trace) -> bytes:
        route = routes.route(request.method, request.rel_url.raw_path)
        if route.ask is Ask.PREDICT:
            return await self._traced(request, route.spec, trace)
        if route.ask is Ask.STATUS:
            return answers.model_status(self._inside.catalog.statuses(route.spec))
        if route.ask is Ask.METADATA:
            return await asyncio.to_thread(self._metadata, route.spec)
        raise RequestError(
            grpc.StatusCode.UNIMPLEMENTED, f"this server has only :predict, got :{route.ask.value}"
        )

    async def _traced(
        self, request: web.BaseRequest, spec: model_pb2.ModelSpec, trace: Trace
    ) -> bytes:
        started = time.perf_counter()
        prediction = _Prediction(self._inside, spec, trace)
        # Of what nobody had thought of.
        code = grpc.StatusCode.UNKNOWN
        try:
            body = await self._predict(request, prediction)
            code = grpc.StatusCode.OK
            return body
        except RequestError as error:
            code = error.code
            raise
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        finally:
            if not prediction.counted:
                prediction.count(code)
            self._inside.tracer.end(trace, code, time.perf_counter() - started)

    async def _predict(self, request: web.BaseRequest, prediction: "_Prediction") -> bytes:
        refusal = self._inside.predictions.refusal()
        if refusal is not None:
            raise refusal
        call = HttpCaller(budget_ms(request.headers.get(BUDGET_HEADER)))
        zipped = _is_gzip(request)
        bounds = prediction.bounds
        most = self._inside.options.max_message_bytes
        if bounds is not None:
            most = min(most, bounds.bytes)
        body = await self._read(request, most)
        future = self._inside.predictions.take(prediction.answer, body, call, zipped, most)
        # In its thread, unless it never gets there.
        prediction.counted = True
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            prediction.counted = not future.cancel()
            call.hang_up()
            raise

    async def _read(self, request: web.BaseRequest, most: int) -> bytes:
        """The body; bodies that are on their way are bounded as predictions are."""
        length = request.content_length
        if length is not None and length > most:
            raise _too_large(most)
        if self._reading >= self._inside.predictions.most:
            raise RequestError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the server is busy: it reads at most {self._reading} requests at a time",
            )
        self._reading += 1
        try:
            async with asyncio.timeout(_BODY_S):
                return await _body(request, most)
        except TimeoutError:
            raise answers.HttpError(
                408,
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"the body must arrive within {_BODY_S:.0f} s",
            ) from None
        finally:
            self._reading -= 1

    def _metadata(self, spec: model_pb2.ModelSpec) -> bytes:
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=spec, metadata_field=[answers.SIGNATURE_DEF]
        )
        return answers.model_metadata(self._inside.service.GetModelMetadata(request, _Context()))


class _Context:
    """What gRPC's methods ask of a call's context: to end it."""

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise RequestError(code, details)


class _Prediction:
    """A prediction in its thread.

    Attributes:
      bounds: of its JSON, for the version that is served now.
      counted: whether metrics are told of its end, or will be.
    """

    def __init__(self, inside: Inside, spec: model_pb2.ModelSpec, trace: Trace) -> None:
        self._inside = inside
        self._spec = spec
        self._trace = trace
        self.bounds = _bounds(inside.catalog, inside.max_rows)
        self.counted = False

    def answer(self, body: bytes, call: HttpCaller, zipped: bool, most: int) -> bytes:
        """The body of the answer."""
        try:
            call.check()
            if zipped:
                body = requests.gunzip(body, most)
            content = requests.parse(body, self.bounds)
            self._spec.signature_name = requests.signature_name(content)
            inputs = self._inputs(self._spec.signature_name)
            request = requests.predict_request(body, content, self._spec, inputs)
        except RequestError as error:
            self.count(error.code)
            raise
        call.parsed()
        # Which counts it.
        response = self._inside.service.answer(request.SerializeToString(), call, self._trace)
        return answers.predictions(response, by_row=requests.ROWS in content)

    def count(self, code: grpc.StatusCode) -> None:
        """Tells metrics of an end before a signature was asked."""
        self._inside.catalog.metrics.answered("", code, 0.0, self._trace.door)

    def _inputs(self, name: str) -> Mapping[str, meta_graph_pb2.TensorInfo]:
        with self._inside.catalog.lease(self._spec) as servable:
            known = servable.signature_defs
            # A signature of the server's own takes what the default one takes, and one
            # that there is not is refused where all are.
            definition = known.get(name or DEFAULT_SIGNATURE) or known.get(DEFAULT_SIGNATURE)
            return definition.inputs if definition else {}


def _bounds(catalog: Catalog, max_rows: int) -> Bounds | None:
    served = catalog.served
    return None if served is None else Bounds.of(served.signature_defs.values(), max_rows)


async def _body(request: web.BaseRequest, most: int) -> bytes:
    await _go_on(request)
    parts = bytearray()
    try:
        async for part in request.content.iter_any():
            parts += part
            if len(parts) > most:
                raise _too_large(most)
    except (aiohttp.ClientPayloadError, aiohttp.http_exceptions.HttpProcessingError) as error:
        raise RequestError(
            grpc.StatusCode.INVALID_ARGUMENT, f"the body must be as its headers say: {error}"
        ) from None
    return bytes(parts)


async def _go_on(request: web.BaseRequest) -> None:
    """Tells a client that waits before it sends its body."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # The answer has not begun.
        request.writer.output_size = 0


def _is_gzip(request: web.BaseRequest) -> bool:
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "gzip"):
        raise answers.HttpError(
            415,
            grpc.StatusCode.INVALID_ARGUMENT,
            f"Content-Encoding must be gzip or identity, got {encoding[:100]!r}",
        )
    return encoding == "gzip"


def _too_large(most: int) -> answers.HttpError:
    return answers.HttpError(
        413,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"the body must have at most {most} bytes, got more",
    )


def _peer(request: web.BaseRequest) -> str:
    address = request.transport.get_extra_info("peername") if request.transport else None
    return f"{address[0]}:{address[1]}" if address else ""
