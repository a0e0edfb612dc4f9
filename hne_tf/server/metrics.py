"""What the server counts, for Prometheus: TF Serving's own metrics name no signature."""

import functools
from collections.abc import Callable

import grpc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)

from hne_tf.errors import InputError

# Seconds; from a small network on its own to a promise that nobody waits for.
_SECONDS = tuple(base * 10.0**power for power in range(-4, 1) for base in (1.0, 2.0, 5.0))
_ROWS = tuple(2.0**power for power in range(11))


class ServerMetrics:
    """Counters, gauges and histograms of one server, on a registry of its own.

    `hne_server_requests_total` counts predictions by door (`grpc` or `rest`), signature
    and gRPC code; the signature is empty where a request was refused before one was found.
    `hne_server_in_progress` are those whose signature is known, waiting or running.
    `hne_server_latency_seconds` is the time from a request's arrival in its
    thread to its answer, `hne_server_batch_rows` the rows of each run of a graph,
    both by signature. `hne_server_anytime_total` counts the answers of signature
    `anytime` by the size of the ensemble. `hne_server_queue_length` are the predictions that wait,
    `hne_server_abandoned_total` those never run, by reason (`expired` or
    `cancelled`). `hne_server_version` is the version served,
    `hne_server_versions_loaded` how many are in memory, and
    `hne_server_swaps_total` and `hne_server_failed_loads_total` count the
    changes and the refused versions. `hne_server_access_log_lost_total` are lines of
    the access log that could not be written.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "hne_server_requests",
            "Predictions by door, signature and gRPC status code.",
            ["door", "signature", "code"],
            registry=registry,
        )
        self._in_progress = Gauge(
            "hne_server_in_progress",
            "Predictions that wait or run, by signature.",
            ["signature"],
            registry=registry,
        )
        self._latency = Histogram(
            "hne_server_latency_seconds",
            "Time of predictions whose signature is known, failed ones too.",
            ["signature"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._rows = Histogram(
            "hne_server_batch_rows",
            "Rows of each run of a graph.",
            ["signature"],
            buckets=_ROWS,
            registry=registry,
        )
        self._anytime = Counter(
            "hne_server_anytime",
            "Answers of signature anytime by the size of the ensemble.",
            ["size"],
            registry=registry,
        )
        self._queue = Gauge(
            "hne_server_queue_length", "Predictions that wait for their turn.", registry=registry
        )
        self._abandoned = Counter(
            "hne_server_abandoned",
            "Predictions never run: expired or cancelled while they waited.",
            ["reason"],
            registry=registry,
        )
        self._version = Gauge("hne_server_version", "Version served.", registry=registry)
        self._loaded = Gauge("hne_server_versions_loaded", "Versions in memory.", registry=registry)
        self._swaps = Counter(
            "hne_server_swaps", "Changes from one version to another.", registry=registry
        )
        self._failed_loads = Counter(
            "hne_server_failed_loads", "Versions refused, each try.", registry=registry
        )
        self._lost_lines = Counter(
            "hne_server_access_log_lost",
            "Lines of the access log that could not be written.",
            registry=registry,
        )

        # Finding a child takes longer than counting.
        self._counter = functools.cache(self._requests.labels)
        self._timer = functools.cache(self._latency.labels)
        self._batch = functools.cache(self._rows.labels)

    def begins(self, signature: str) -> None:
        """A prediction has found its signature; `answered` is to follow."""
        self._in_progress.labels(signature).inc()

    def answered(
        self, signature: str, code: grpc.StatusCode, seconds: float, door: str = "grpc"
    ) -> None:
        """A prediction ended; `signature` is empty if none was found."""
        self._counter(door, signature, code.name).inc()
        if signature:
            self._in_progress.labels(signature).dec()
            self._timer(signature).observe(seconds)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._abandoned.labels("expired").inc()
        elif code is grpc.StatusCode.CANCELLED:
            self._abandoned.labels("cancelled").inc()

    def computes(self, signature: str, rows: int) -> None:
        """A graph runs on a batch."""
        self._batch(signature).observe(rows)

    def answered_anytime(self, size: int) -> None:
        """Signature `anytime` was answered by an ensemble of `size`."""
        self._anytime.labels(str(size)).inc()

    def queue_is(self, length: Callable[[], float]) -> None:
        """Asks `length` for the predictions that wait whenever metrics are read."""
        self._queue.set_function(length)

    def versions(self, served: int, loaded: int) -> None:
        """The version served and how many are in memory."""
        self._version.set(served)
        self._loaded.set(loaded)

    def swapped(self) -> None:
        """Another version took over."""
        self._swaps.inc()

    def load_failed(self) -> None:
        """A version was refused."""
        self._failed_loads.inc()

    def line_lost(self) -> None:
        """A line of the access log could not be written."""
        self._lost_lines.inc()

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Answers Prometheus; see `serve_metrics`."""
        return serve_metrics(self.registry, host, port)


def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> Callable[[], None]:
    """Answers Prometheus on `/metrics`; returns what stops that.

    Raises:
      InputError: if the address cannot be listened on.
    """
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port} for metrics: {error}") from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
