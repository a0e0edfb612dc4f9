"""What the gateway counts, for Prometheus."""

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

# Seconds; the same as the embedded server's.
_SECONDS = tuple(base * 10.0**power for power in range(-4, 1) for base in (1.0, 2.0, 5.0))

# Only answers of all leaves are between the last two.
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.999, 1.0)


class GatewayMetrics:
    """Counters, gauges and histograms of one gateway, on a registry of its own.

    `hne_gateway_requests_total` counts predictions by signature and gRPC code, and
    `hne_gateway_latency_seconds` is the time until their answer; the signature is
    empty unless the model is known to have it. `hne_gateway_anytime_total` counts
    the answers of signature `anytime` by the size of the ensemble, and
    `hne_gateway_leaves_share` is the share of the model's leaves in those that several
    servers have computed. `hne_gateway_in_flight` are the predictions that are under way.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "hne_gateway_requests",
            "Predictions by signature and gRPC status code.",
            ["signature", "code"],
            registry=registry,
        )
        self._latency = Histogram(
            "hne_gateway_latency_seconds",
            "Time of predictions, failed ones too.",
            ["signature"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._anytime = Counter(
            "hne_gateway_anytime",
            "Answers of signature anytime by the size of the ensemble.",
            ["size"],
            registry=registry,
        )
        self._share = Histogram(
            "hne_gateway_leaves_share",
            "Share of the model's leaves in answers of several servers to signature anytime.",
            buckets=_SHARES,
            registry=registry,
        )
        self.in_flight = Gauge(
            "hne_gateway_in_flight", "Predictions that are under way.", registry=registry
        )

    def answered(self, signature: str, code: grpc.StatusCode, seconds: float) -> None:
        """A prediction ended; `signature` is empty if it is not known."""
        self._requests.labels(signature, code.name).inc()
        self._latency.labels(signature).observe(seconds)

    def answered_anytime(self, size: int, total: int = 0) -> None:
        """Signature `anytime` was answered.

        Args:
          size: number of leaves in the answer.
          total: number of leaves of the model, if several servers have computed them.
        """
        self._anytime.labels(str(size)).inc()
        if total:
            self._share.observe(size / total)
