"""What a client counts, for Prometheus: TF Serving's own metrics name no signature."""

import functools

from prometheus_client import CollectorRegistry, Counter, Histogram

# Seconds; from a small network on its own to a promise that nobody waits for.
_BUCKETS = tuple(base * 10.0**power for power in range(-3, 1) for base in (1.0, 2.0, 5.0))


class ClientMetrics:
    """Counters and histograms of the clients that share one registry.

    `hne_client_requests_total` counts calls by signature and gRPC code,
    `hne_client_latency_seconds` their time by signature, `hne_client_answers_total`
    answers by ensemble size, `hne_client_budget_missed_total` requests without an
    answer inside their budget, and `hne_client_retries_total` calls after the
    first of a request. All have the label `model`.

    Args:
      registry: where they are registered, which is possible once.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._requests = Counter(
            "hne_client_requests",
            "Calls by signature and gRPC status code.",
            ["model", "signature", "code"],
            registry=registry,
        )
        self._latency = Histogram(
            "hne_client_latency_seconds",
            "Time of each call, failed ones too.",
            ["model", "signature"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._answers = Counter(
            "hne_client_answers",
            "Answers by ensemble size.",
            ["model", "size"],
            registry=registry,
        )
        self._missed = Counter(
            "hne_client_budget_missed",
            "Requests without an answer inside their budget.",
            ["model"],
            registry=registry,
        )
        self._retries = Counter(
            "hne_client_retries",
            "Calls after the first of a request.",
            ["model"],
            registry=registry,
        )
        # Looking a label up takes longer than counting.
        self._labelled = functools.lru_cache(maxsize=4096)(
            lambda metric, *labels: metric.labels(*labels)
        )

    @classmethod
    def of(cls, registry: "CollectorRegistry | ClientMetrics | None") -> "ClientMetrics":
        """Metrics on a registry, on a new one, or as they are."""
        if isinstance(registry, ClientMetrics):
            return registry
        return cls(CollectorRegistry() if registry is None else registry)

    def call(self, model: str, signature: str, code: str, latency_ms: float) -> None:
        """Counts a call that has ended."""
        self._labelled(self._requests, model, signature, code).inc()
        self._labelled(self._latency, model, signature).observe(latency_ms / 1000)

    def retry(self, model: str) -> None:
        """Counts a call after the first of a request."""
        self._labelled(self._retries, model).inc()

    def answer(self, model: str, size: int) -> None:
        """Counts an answer."""
        self._labelled(self._answers, model, str(size)).inc()

    def missed(self, model: str) -> None:
        """Counts a request without an answer inside its budget."""
        self._labelled(self._missed, model).inc()
