"""Read requests within their limits, and notice when a client goes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from experiments.serving.errors import ApiError
from experiments.serving.fields import read_object
from experiments.serving.state import State

DIGEST = "X-Adapter-Digest"
"""The header that says which version of an adapter has computed an answer."""
T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]


async def read_body(request: Request, state: State) -> bytes:
    """The body of a request.

    Raises:
      ApiError: 413, if it is longer than `max_body`. No more than that is kept. 415, if it is not
        said to be JSON: a page in a browser can send any other to a server on loopback. 408 or 503
        as for `State.body`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind.lower() != "application/json":
        raise ApiError(415, "the body must be of Content-Type application/json")
    said, most = request.headers.get("content-length", "0"), state.settings.max_body
    body = bytearray()
    if said.isdecimal() and int(said) <= most:
        async with state.body():
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    break
            else:
                return bytes(body)
    raise ApiError(413, f"the body has more than {most} bytes", code="body_too_large")


async def read_json(request: Request, state: State) -> dict[str, Any]:
    """The JSON object of a request; ApiError as for `read_body`, or 400."""
    return read_object(await read_body(request, state))


async def unless_gone(request: Request, answer: Awaitable[T]) -> T:
    """Await an answer; cancel it if the client goes.

    Raises:
      ClientDisconnect: the client has gone.
    """
    work = asyncio.ensure_future(answer)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Stream(Response):
    """An answer in server-sent events, whose source is closed however it ends.

    Args:
      events: the source.
      close: called at the end, also if the client goes.
      seconds: how long the client may take to read all of it.
    """

    def __init__(
        self,
        events: AsyncIterator[str],
        close: Callable[[], Awaitable[Any]],
        headers: dict[str, str],
        seconds: float,
    ):
        super().__init__(None, 200, {**headers, "Cache-Control": "no-cache"}, "text/event-stream")
        del self.headers["content-length"]
        self._events, self._close, self._seconds = events, close, seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            begun = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **begun})
            with contextlib.suppress(ClientDisconnect, TimeoutError):
                async with asyncio.timeout(self._seconds):
                    await unless_gone(Request(scope, receive), self._send(send))
        finally:
            await self._close()

    async def _send(self, send: Any) -> None:
        async for event in self._events:
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def refused(error: ApiError) -> JSONResponse:
    """The answer that says an error."""
    return JSONResponse(error.body, error.status, error.headers)
