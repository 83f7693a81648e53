"""The Prometheus metrics of the server, at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)


class Metrics:
    """Counters and histograms of one server, in a separate registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        name = "latentdiff_"
        self.images = Counter(name + "images", "Images made.", registry=registry)
        self.steps = Counter(
            name + "row_steps", "Sampling steps, counted per image; its rate is steps per second.", registry=registry
        )
        self.errors = Counter(name + "errors", "Failed requests, by error code.", ["code"], registry=registry)
        self.requests = Counter(name + "requests", "HTTP requests.", ["route", "status"], registry=registry)
        self.rows = Histogram(
            name + "batch_rows", "Number of images in a batch.", buckets=(1, 2, 4, 8), registry=registry
        )
        self.step_seconds = Histogram(
            name + "step_seconds",
            "Duration of one step of a batch.",
            buckets=(0.01, 0.025, *SECONDS[:9]),
            registry=registry,
        )
        self.queue_seconds = Histogram(
            name + "queue_seconds", "Time from acceptance to the first step.", buckets=SECONDS, registry=registry
        )
        self.job_seconds = Histogram(
            name + "job_seconds", "Time from acceptance to the last image.", buckets=SECONDS, registry=registry
        )
        self.decode_seconds = Histogram(name + "decode_seconds", "VAE decoding.", buckets=SECONDS, registry=registry)
        self.waiting = Gauge(
            name + "waiting_images", "Images that are accepted but not yet started.", registry=registry
        )
        self.running = Gauge(name + "jobs", "Unfinished jobs.", registry=registry)
        self.model_bytes = Gauge(name + "model_bytes", "Size of the weights of the loaded models.", registry=registry)
        self.resident_bytes = Gauge(name + "resident_bytes", "Resident memory of this process.", registry=registry)

    def observe_step(self, rows: int, seconds: float) -> None:
        """Record that one batch advanced by one step."""
        self.steps.inc(rows)
        self.rows.observe(rows)
        self.step_seconds.observe(seconds)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
