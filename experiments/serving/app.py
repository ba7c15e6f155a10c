"""All routes in one application, with what is said of errors and what is counted."""

import asyncio
import time
from typing import Any

from absl import logging
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from experiments.serving.admin import Admin
from experiments.serving.classify import Classify
from experiments.serving.errors import ApiError, one_line
from experiments.serving.http import Endpoint, refused
from experiments.serving.routes import Routes
from experiments.serving.state import READY, State

GONE = 499
"""The status that is counted for a client that has gone, as nginx has it."""


def make_app(state: State) -> Any:
    """The application of a server, as ASGI has it."""
    routes, admin = Routes(state), Admin(state)

    async def health(request: Request) -> Response:
        code = 200 if state.status == READY else 503
        return JSONResponse({"status": state.status}, code)

    async def metrics(request: Request) -> Response:
        if state.thread.loaded:
            state.metrics.resident.set(state.thread.store.filled)
        return Response(state.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    table: list[tuple[str, str, Endpoint]] = [
        ("GET", "/health", health),
        ("GET", "/metrics", metrics),
        ("GET", "/v1/models", routes.models),
        ("POST", "/v1/completions", routes.completions),
        ("POST", "/v1/chat/completions", routes.chat),
        ("POST", "/v1/classify", Classify(state)),
        ("POST", "/admin/adapters/{name}/load", admin.load),
        ("POST", "/admin/adapters/{name}/unload", admin.unload),
        ("POST", "/admin/adapters/{name}/reload", admin.reload),
    ]
    found = [Route(path, _named(path, each), methods=[method]) for method, path, each in table]
    handlers: Any = {HTTPException: _http_error}
    return Counted(Starlette(routes=found, exception_handlers=handlers), state)


def _named(path: str, endpoint: Endpoint) -> Endpoint:
    """The endpoint, which notes its route for what is counted."""

    async def call(request: Request) -> Response:
        request.scope["serving_route"][0] = path
        try:
            return await endpoint(request)
        except ApiError as error:
            return refused(error)
        except ClientDisconnect:
            return Response(status_code=GONE)
        except Exception as error:  # a fault of ours, which must not end in a page of HTML
            logging.error("%s: %s", path, one_line(error))
            return refused(ApiError(500, "the server has failed", code="fault"))

    return call


async def _http_error(request: Request, error: HTTPException) -> Response:
    """No such route, or not by this method."""
    headers = dict(error.headers or {})
    return refused(ApiError(error.status_code, str(error.detail), headers=headers))


class Counted:
    """Counts requests by route and status, and measures them to the end of their answers."""

    def __init__(self, app: Any, state: State):
        self._app, self._state = app, state

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, route = time.monotonic(), [500], ["none"]

        async def noted(message: Any) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
            await send(message)

        self._state.answering += 1
        try:
            await self._app({**scope, "serving_route": route}, receive, noted)
        except asyncio.CancelledError:  # the server has ended, and its client does not read
            logging.warning("%s: an answer is not complete: its client does not read", route[0])
        finally:
            self._state.answering -= 1
            metrics = self._state.metrics
            metrics.requests.labels(route[0], str(status[0])).inc()
            metrics.seconds.labels(route[0]).observe(time.monotonic() - began)
