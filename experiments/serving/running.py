"""One request while it is computed: its events, its limits, and its end if the client goes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from experiments.serving.adapter_folder import is_name
from experiments.serving.errors import ApiError, refusal, unavailable, unknown_model
from experiments.serving.jobs import Event, Failed, Job, Started, Step
from experiments.serving.model_thread import ModelThread
from experiments.serving.state import State
from lora_jax.serving.adapter_store import Version


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
