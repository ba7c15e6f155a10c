"""The routes for who looks after the server: adapters are loaded, unloaded and read again."""

import asyncio
import contextlib
import hmac
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from experiments.serving.adapter_folder import is_name
from experiments.serving.errors import ApiError, unknown_model
from experiments.serving.model_thread import refusal
from experiments.serving.state import State
from lora_jax.serving.adapter_store import Lease, NoSlotFree, UnknownAdapterError


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
        await self._done(name, asyncio.wrap_future(store.prefetch(name)))
        lease = await self._done(name, self._put(name))
        return JSONResponse({"name": name, "digest": lease.digest, "slot": lease.slot})

    async def unload(self, request: Request) -> Response:
        name = self._name(request)
        store = self._state.thread.store
        known = name in store.held()
        store.unload(name)
        return JSONResponse({"name": name, "unloaded": known})

    async def reload(self, request: Request) -> Response:
        name = self._name(request)
        reload = self._state.thread.store.reload
        digest = await self._done(name, asyncio.to_thread(reload, name))
        with contextlib.suppress(NoSlotFree):  # it is in memory, and the next request puts it
            await self._put(name)
        return JSONResponse({"name": name, "digest": digest})

    async def _put(self, name: str) -> Lease:
        def put() -> Lease:
            with self._state.thread.store.acquire(name) as lease:
                return lease

        return await asyncio.wrap_future(self._state.thread.call(put))

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
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
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
