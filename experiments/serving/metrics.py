"""What the server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
PREFIX = "lora_jax_"


class Metrics:
    """The counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def make(kind: type, name: str, said: str, labels: tuple[str, ...] = (), **more: object):
            return kind(f"{PREFIX}{name}", said, labels, registry=registry, **more)

        self.requests = make(
            Counter, "requests", "Answered requests, by route and status.", ("route", "status")
        )
        self.seconds = make(
            Histogram,
            "request_seconds",
            "From a request's arrival to the end of its answer.",
            ("route",),
            buckets=SECONDS,
        )
        self.first_token = make(
            Histogram,
            "first_token_seconds",
            "From a request's arrival to its first token; loads and waits count.",
            buckets=SECONDS,
        )
        self.tokens = make(Counter, "tokens", "Tokens of prompts and completions.", ("kind",))
        self.waiting = make(Gauge, "waiting_sequences", "Sequences that wait for a lane.")
        self.active = make(Gauge, "active_sequences", "Sequences that are being computed.")
        self.resident = make(Gauge, "resident_adapters", "Slots of the bank that have an adapter.")
        self.steps = make(Counter, "steps", "Steps of the model.")
        self.failed_steps = make(Counter, "failed_steps", "Steps of the model that failed.")

    def text(self) -> bytes:
        """All of them in Prometheus' text format, which is of type `CONTENT_TYPE_LATEST`."""
        return generate_latest(self._registry)
