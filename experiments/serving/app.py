"""All routes in one application, those of admins too, with what is said of errors and counted."""

import asyncio
import contextlib
import functools
import hmac
import time
from concurrent.futures import Future
from typing import Any

from absl import logging
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from experiments.serving.adapter_folder import is_name
from experiments.serving.errors import ApiError, one_line, reason, refusal, unknown_model
from experiments.serving.routes import Endpoint, Routes, refused
from experiments.serving.state import READY, State
from lora_jax.serving.adapter_store import UnknownAdapterError, Version
from lora_jax.serving.slot_table import Lease, NoSlotFree

GONE = 499
"""The status that is counted for a client that has gone, as nginx has it."""


class Admin:
    """`POST /admin/adapters/{name}/load`, `unload` and `reload`, for who has the token.

    `load` puts an adapter into a slot before it is asked for, and answers when the programs that it
    needs are compiled. `unload` frees its slot, and the memory of what it alone needs, once the
    last request with it has ended, and forgets what was read; a later request reads it again, so to
    withdraw an adapter, remove its folder and then unload it. `reload` reads its folder again:
    later requests get what is there now, and those that run end with what they began with.
    """

    def __init__(self, state: State):
        self._state = state

    async def load(self, request: Request) -> Response:
        name = self._name(request)
        store = self._state.thread.store
        loading = await asyncio.to_thread(store.fetch, name)
        loaded = await self._done(name, asyncio.wrap_future(loading))
        lease = await self._done(name, self._put(name, loaded))
        return JSONResponse({"name": name, "digest": lease.digest, "slot": lease.slot})

    async def unload(self, request: Request) -> Response:
        name, store = self._name(request), self._state.thread.store
        unloaded = await asyncio.to_thread(store.unload, name)
        trimmed = await self._trimmed()
        if not unloaded:
            await self._done(name, asyncio.to_thread(self._require_known, name))
        return JSONResponse({"name": name, "unloaded": unloaded, **trimmed})

    async def reload(self, request: Request) -> Response:
        name = self._name(request)
        load_anew = self._state.thread.store.load_anew
        loaded = await self._done(name, asyncio.to_thread(load_anew, name))
        await self._done(name, self._put_if_free(name, loaded))
        return JSONResponse({"name": name, "digest": loaded.digest, **await self._trimmed()})

    async def _put_if_free(self, name: str, loaded: Version) -> None:
        with contextlib.suppress(NoSlotFree):  # the next request puts it
            await self._put(name, loaded)

    async def _put(self, name: str, loaded: Version | None) -> Lease:
        """Put an adapter into a slot, in the thread of the model, which waits for nothing.

        What must be loaded or compiled before is waited for here.
        """
        thread = self._state.thread

        def put(loaded: Version | None) -> Lease | Future[Version]:
            found = thread.acquire(name, loaded)
            if not isinstance(found, Future):
                found.release()
            return found

        while True:
            found = await asyncio.wrap_future(thread.call(functools.partial(put, loaded)))
            if not isinstance(found, Future):
                return found
            loaded = await asyncio.shield(asyncio.wrap_future(found))

    async def _trimmed(self) -> dict[str, str]:
        """Free what no adapter in a slot needs; what is said if programs without it fail."""
        trimming = await asyncio.to_thread(self._state.thread.store.trim)
        try:
            await asyncio.shield(asyncio.wrap_future(trimming))
        except Exception as error:  # of XLA: requests go on with the programs that there are
            logging.error("programs without what was unloaded: %s", one_line(error))
            message = "the device keeps its memory, as programs without it do not compile"
            return {"warning": f"{message}: {one_line(error)}"}
        return {}

    def _require_known(self, name: str) -> None:
        """Refuse a name that is neither in the folder nor, as its files are gone, in a slot."""
        try:
            self._state.folder.files(name)
        except UnknownAdapterError:
            known = {*self._state.thread.store.held(), *self._state.folder.names()}
            raise UnknownAdapterError(name, sorted(known)) from None

    async def _done(self, name: str, work: Any) -> Any:
        try:
            return await work
        except UnknownAdapterError as error:
            raise ApiError(404, str(error), param="name", code="model_not_found") from None
        except (ValueError, OSError) as error:  # an admin may know what is wrong with it
            raise ApiError(409, reason(error), param="name", code="adapter_unusable") from None
        except Exception as error:  # no slot is free, or a fault
            raise refusal(name, error) from None

    def _name(self, request: Request) -> str:
        """The name in the path, of who may ask."""
        token = self._state.settings.token
        if token is None:
            raise ApiError(403, "the admin routes are off: start with --admin_token_file")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        given = given.strip(" ").encode() if scheme.lower() == "bearer" else b""
        if not hmac.compare_digest(given, token.encode()):
            headers = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, "the admin routes need the bearer token", headers=headers)
        self._state.require_ready()
        name = request.path_params["name"]
        if not is_name(name):
            raise unknown_model(name)
        if name == self._state.name:
            message = f"'{name}' is the name of the base: rename the adapter's folder"
            raise ApiError(409, message, param="name", code="adapter_unusable")
        return name


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
        ("POST", "/v1/classify", routes.classify),
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
