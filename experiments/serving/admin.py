"""The routes for who looks after the server: adapters are loaded, unloaded and read again."""

import asyncio
import contextlib
import functools
import hmac
from concurrent.futures import Future
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from experiments.serving.adapter_folder import is_name
from experiments.serving.errors import ApiError, refusal, unknown_model
from experiments.serving.state import State
from lora_jax.serving.adapter_store import Lease, NoSlotFree, UnknownAdapterError, Version


class Admin:
    """`POST /admin/adapters/{name}/load`, `unload` and `reload`, for who has the token.

    `load` puts an adapter into a slot before it is asked for. `unload` frees its slot, once the
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
        name = self._name(request)
        unloaded = await asyncio.to_thread(self._state.thread.store.unload, name)
        if not unloaded:
            await self._done(name, asyncio.to_thread(self._state.folder.files, name))
        return JSONResponse({"name": name, "unloaded": unloaded})

    async def reload(self, request: Request) -> Response:
        name = self._name(request)
        load_anew = self._state.thread.store.load_anew
        loaded = await self._done(name, asyncio.to_thread(load_anew, name))
        with contextlib.suppress(NoSlotFree):  # the next request puts it
            await self._put(name, loaded)
        return JSONResponse({"name": name, "digest": loaded.digest})

    async def _put(self, name: str, loaded: Version | None) -> Lease:
        """Put an adapter into a slot, in the thread of the model, which waits for no load."""
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

    async def _done(self, name: str, work: Any) -> Any:
        try:
            return await work
        except UnknownAdapterError:
            raise unknown_model(name) from None
        except (ValueError, OSError) as error:  # an admin may know what is wrong with it
            message = " ".join(str(error).split())
            raise ApiError(409, message, param="name", code="adapter_unusable") from None
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
