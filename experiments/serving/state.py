"""What all routes share: the thread of the model, the counters, and who may come in."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from experiments.serving.adapter_folder import AdapterFolder
from experiments.serving.base_model import BaseModel
from experiments.serving.errors import ApiError, busy, unavailable
from experiments.serving.metrics import Metrics
from experiments.serving.model_thread import ModelThread
from experiments.serving.settings import Settings

STARTING, READY, DRAINING = "starting", "ready", "draining"


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
