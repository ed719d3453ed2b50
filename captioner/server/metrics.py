"""Counts for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_PATHS = ("/", "/v1/captions", "/v1/models", "/healthz", "/metrics")


class Metrics:
    """Counts for Prometheus, of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("captioner_requests", "Requests", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "captioner_request_seconds", "Seconds of requests for captions", registry=self.registry
        )
        self.batch_size = Histogram(
            "captioner_batch_size",
            "Pictures captioned together",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )
        self.open = Gauge(
            "captioner_open_requests", "Requests for captions under way", registry=self.registry
        )

    def observe(self, path: str, status: int, seconds: float) -> None:
        known = path if path in _PATHS else "other"
        self.requests.labels(known, str(status)).inc()
        if path == "/v1/captions":
            self.seconds.observe(seconds)
