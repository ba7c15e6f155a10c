"""What all routes share: limits, counters, the thread of the model, and who may come in."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from experiments.serving.adapter_folder import AdapterFolder, is_name
from experiments.serving.base_model import BaseModel
from experiments.serving.errors import ApiError, busy, refusal, unavailable, unknown_model
from experiments.serving.model_thread import Event, Failed, Job, ModelThread, Started, Step
from lora_jax.serving.adapter_store import Version

STARTING, READY, DRAINING = "starting", "ready", "draining"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
PREFIX = "lora_jax_"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a server is started with, apart from its model and adapters.

    Args:
      lanes: sequences that are computed at a time.
      queue: sequences that may wait for a lane; more are refused with 429.
      tokens: of a prompt and what follows it, at most.
      max_body: bytes of a request's body, at most.
      time_limit: seconds that a request may take, its wait included.
      drain_seconds: how long requests may still run after SIGTERM.
      token: the bearer token of the admin routes; None switches them off.
      capacity: slots of the bank.
      max_rank: the highest rank of an adapter.
      host_bytes: of adapters in host memory beside those in slots, at most. A request that
        waits for a slot keeps its adapter besides.
    """

    lanes: int = 8
    queue: int = 64
    tokens: int = 2048
    max_body: int = 2**20
    time_limit: float = 300.0
    drain_seconds: float = 30.0
    token: str | None = None
    capacity: int = 16
    max_rank: int = 32
    host_bytes: int = 2**30


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


class State:
    """The state of one server; the event loop alone changes it.

    Args:
      name: what clients call the base.
      folder: the adapters.
    """

    def __init__(self, name: str, folder: AdapterFolder, settings: Settings, metrics: Metrics):
        self.name, self.folder, self.settings, self.metrics = name, folder, settings, metrics
        self.status = STARTING
        self.in_flight = 0
        """Sequences that run or wait."""
        self.answering = 0
        """Requests that are being answered, of whatever kind."""
        self._bodies: set[asyncio.Timeout] = set()
        """Of requests whose body is still to come."""
        self.base: BaseModel
        self.thread: ModelThread

    def adapter(self, model: str) -> str | None:
        """The adapter that a request names as its model; None for the base."""
        return None if model == self.name else model

    def require_ready(self) -> None:
        """Refuse a request while the server cannot answer it."""
        if self.status != READY:
            raise unavailable(f"the server is {self.status}", self.status)

    @contextlib.asynccontextmanager
    async def body(self) -> AsyncIterator[None]:
        """Time for the body of a request to come, which ends when the server begins to end.

        Raises:
          ApiError: 408, the time is over; 503, the server is not ready, or ends.
        """
        self.require_ready()
        try:
            async with asyncio.timeout(self.settings.time_limit) as limit:
                self._bodies.add(limit)
                try:
                    yield
                finally:
                    self._bodies.discard(limit)
        except TimeoutError:
            self.require_ready()
            raise ApiError(408, "the body did not come in time", code="timeout") from None

    def drain(self) -> None:
        """Begin to end: requests that have not come whole are refused."""
        self.status = DRAINING
        for each in self._bodies:
            if not each.expired():
                each.reschedule(asyncio.get_running_loop().time())

    @contextlib.contextmanager
    def room(self, rows: int) -> Iterator[None]:
        """Room for some sequences.

        Raises:
          ApiError: 429, the queue is full; 422, there can never be room for so many.
        """
        most = self.settings.lanes + self.settings.queue
        if rows > most:
            raise ApiError(
                422,
                f"the request has {rows} sequences; at most {most} may run and wait: send fewer",
                code="too_many_sequences",
            )
        if self.in_flight + rows > most:
            raise busy(self.in_flight)
        self.in_flight += rows
        try:
            yield
        finally:
            self.in_flight -= rows


class Running:
    """A job that has begun.

    Args:
      digest: of the adapter that computes it.
    """

    def __init__(self, thread: ModelThread, job: Job, events: "asyncio.Queue[Event]", ends: float):
        self._thread, self._job, self._events, self._ends = thread, job, events, ends
        self._open = {*range(len(job.rows))}
        self.digest = ""

    async def begin(self) -> None:
        """Wait until the adapter is in a slot."""
        event = await self._next()
        assert isinstance(event, Started)
        self.digest = event.digest

    async def steps(self) -> AsyncIterator[Step]:
        """What all rows get, until each has ended.

        Raises:
          ApiError: the job fails or takes too long.
        """
        while self._open:
            event = await self._next()
            assert isinstance(event, Step)
            if event.row not in self._open:
                continue
            if event.finish is not None:
                self._open.remove(event.row)
            yield event

    def cut(self, row: int) -> None:
        """End a row, which gets no more steps."""
        if row in self._open:
            self._open.remove(row)
            self._thread.cut(self._job, row)

    async def _next(self) -> Event:
        try:
            async with asyncio.timeout_at(self._ends):
                event = await self._events.get()
        except TimeoutError:
            raise unavailable("the request took longer than the server allows", "timeout") from None
        if isinstance(event, Failed):
            raise event.error
        return event


@contextlib.asynccontextmanager
async def running(state: State, adapter: str | None, rows: Sequence[Any]) -> AsyncIterator[Running]:
    """Compute rows with an adapter, or with the base, while the context lasts.

    On leaving, what has not ended is cancelled and its lanes are free.

    Raises:
      ApiError: the queue is full, or the adapter cannot be used.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + state.settings.time_limit
    with state.room(len(rows)):
        events: asyncio.Queue[Event] = asyncio.Queue()

        def post(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = Job(adapter, rows, post, await _in_memory(state, adapter, ends))
        state.thread.submit(job)
        try:
            found = Running(state.thread, job, events, ends)
            await found.begin()
            yield found
        finally:
            state.thread.cancel(job)


async def _in_memory(state: State, adapter: str | None, ends: float) -> Version | None:
    """Have an adapter read, while others are computed. None if it is in a slot."""
    if adapter is None:
        return None
    if not is_name(adapter):
        raise unknown_model(adapter)
    try:
        async with asyncio.timeout_at(ends):
            # In a thread, as the store's lock may be held while an adapter is put into a slot.
            loading = await asyncio.to_thread(state.thread.store.fetch, adapter)
            return await asyncio.shield(asyncio.wrap_future(loading))
    except TimeoutError:
        raise unavailable("the adapter took too long to load", "timeout") from None
    except ApiError:
        raise
    except Exception as error:  # of the file or the adapter
        raise refusal(adapter, error) from None
