"""The gateway as a context: upstreams behind, clients in front."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence

import grpc

from hne_tf.client import transport
from hne_tf.client.latency.profile import Prior
from hne_tf.errors import InputError
from hne_tf.gateway.anytime import OneUpstream
from hne_tf.gateway.metrics import GatewayMetrics
from hne_tf.gateway.models import Models
from hne_tf.gateway.service import GatewayService
from hne_tf.gateway.spread import SpreadUpstreams
from hne_tf.gateway.upstreams import Upstreams
from hne_tf.server.metrics import serve_metrics

# For the last bytes of answers; health watchers never hang up by themselves.
_LAST_BYTES_S = 0.5


@dataclasses.dataclass(frozen=True)
class GatewayOptions:
    """How much a gateway takes on, and what it knows.

    Attributes:
      most_predictions: under way at a time.
      max_message_bytes: size of a request beyond which it is not read.
      credentials: TLS towards clients; None for plaintext.
      model_name: model that `prior` is of.
      prior: its measured latencies, to begin with.
      spread: whether `anytime` is answered by all servers together, each with leaves of
        its own, instead of by one of them.
    """

    most_predictions: int = 1024
    max_message_bytes: int = transport.MAX_MESSAGE_BYTES
    credentials: grpc.ServerCredentials | None = None
    model_name: str = ""
    prior: Prior | None = None
    spread: bool = False


@dataclasses.dataclass(frozen=True)
class RunningGateway:
    """A gateway that accepts requests.

    Attributes:
      address: `host:port`, as a gRPC client takes it.
      metrics: what it counts.
    """

    address: str
    metrics: GatewayMetrics


@contextlib.contextmanager
def gateway(
    targets: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    options: GatewayOptions | None = None,
    metrics_port: int = 0,
    drain_s: float = 10.0,
) -> Iterator[RunningGateway]:
    """Runs a gateway while the block runs.

    Args:
      targets: `host:port` of each server behind it.
      host: address to listen on.
      port: port to listen on; 0 for any free one.
      options: `GatewayOptions()` by default.
      metrics_port: port of Prometheus metrics; 0 for none.
      drain_s: seconds that predictions under way have when the block ends.

    Raises:
      InputError: without targets, or if a port is taken.

    Example:
      >>> with gateway(["10.0.0.1:8500", "10.0.0.2:8500"], port=8500) as running:
      ...     print(running.address)
    """
    check_targets(targets)
    with contextlib.ExitStack() as cleanup:
        metrics = GatewayMetrics()
        if metrics_port:
            cleanup.callback(serve_metrics(metrics.registry, host, metrics_port))
        worker = _Worker(targets, host, port, options or GatewayOptions(), metrics, drain_s)
        cleanup.callback(worker.stop)
        yield RunningGateway(transport.address(host, worker.start()), metrics)


def check_targets(targets: Sequence[str]) -> None:
    """Raises `InputError` unless each target is `host:port`, and none is there twice."""
    for target in targets:
        host, _, port = target.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InputError(f"an upstream must be HOST:PORT, got {target!r}")
    if not targets or len(set(targets)) < len(targets):
        raise InputError(f"upstreams must be different and at least one, got {list(targets)}")


class _Worker:
    """The gateway's event loop, in a thread of its own."""

    def __init__(
        self,
        targets: Sequence[str],
        host: str,
        port: int,
        options: GatewayOptions,
        metrics: GatewayMetrics,
        drain_s: float,
    ) -> None:
        self._targets = targets
        self._address = transport.address(host, port)
        self._options = options
        self._metrics = metrics
        self._drain_s = drain_s
        self._bound: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)

    def start(self) -> int:
        """Returns the port; raises `InputError` if it cannot be listened on."""
        self._thread.start()
        return self._bound.result()

    def stop(self) -> None:
        """Drains and ends."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:
            self._bound.set_exception(error)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        options = self._options
        upstreams = Upstreams(self._targets)
        models = Models(upstreams, options.model_name, options.prior)
        answerer = (SpreadUpstreams if options.spread else OneUpstream)(upstreams, models)
        service = GatewayService(
            upstreams, models, answerer, self._metrics, options.most_predictions
        )
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", options.max_message_bytes),
                ("grpc.max_send_message_length", transport.MAX_MESSAGE_BYTES),
                # Without this two servers can listen on one port and share its requests.
                ("grpc.so_reuseport", 0),
            ]
        )
        server.add_generic_rpc_handlers((service,))
        try:
            bound = transport.listen(server, self._address, options.credentials)
            await server.start()
            self._bound.set_result(bound)
            await self._stopped.wait()
            await service.drain(self._drain_s)
            await server.stop(_LAST_BYTES_S)
        finally:
            await upstreams.close()
