"""Put a server together and start it. At its end, what runs is finished, and others are refused."""

import asyncio
import contextlib
import functools
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

import lora_jax as lj
from experiments.serving.adapter_folder import AdapterFolder, AdapterLoader
from experiments.serving.app import make_app
from experiments.serving.base_model import BaseModel
from experiments.serving.engines import Classifying, Engine, Generating
from experiments.serving.errors import reason, unavailable
from experiments.serving.model_thread import ModelThread
from experiments.serving.state import DRAINING, READY, Metrics, Settings, State
from lora_jax.serving.adapter_store import AdapterStore

TICK = 0.02
LAST = 2.0
"""Seconds for the last answers, once they are known, and for the thread of the model."""


def make_state(
    name: str,
    folder: AdapterFolder,
    settings: Settings,
    load: Callable[[], BaseModel],
) -> State:
    """A server that loads its model once its thread is started.

    Args:
      name: what clients call the base.
      load: loads the base.
    """
    metrics = Metrics()
    state = State(name, folder, settings, metrics)

    def make() -> tuple[AdapterStore, Engine, str]:
        state.base = base = load()
        bank = lj.Bank(base.serve, base.params, settings.capacity, settings.max_rank)
        loader = AdapterLoader(base, folder)
        store = AdapterStore(bank, loader, host_bytes=settings.host_bytes)
        put_first(store, folder, settings.capacity, lambda name: bank.prepare(loader(name)[0]))
        with store.using() as bank:
            sizes = settings.lanes, settings.tokens
            engine = Classifying(*sizes) if base.labels else Generating(bank, *sizes)
            engine.warm(bank)
        store.compile_first(engine, lambda: state.thread.call(state.thread.renew))
        return store, engine, base.digest

    state.thread = ModelThread(make, functools.partial(note, metrics))
    return state


def put_first(
    store: AdapterStore, folder: AdapterFolder, most: int, check: Callable[[str], object]
) -> None:
    """Put the first adapters of a folder into slots: programs are compiled for what they are.

    Every adapter that cannot be used is named.

    Args:
      most: how many get a slot.
      check: reads another adapter, and raises an error if it does not fit.
    """
    names = folder.names()
    loading = {name: store.fetch(name) for name in names[:most]}
    for name in names:
        try:
            if name in loading:
                store.acquire(name, loading.pop(name).result()).release()
            else:
                check(name)
        except Exception as error:  # of its files, which must not keep the server from starting
            print(f"the adapter '{name}' cannot be used: {reason(error)}", file=sys.stderr)


def note(metrics: Metrics, thread: ModelThread, steps: int, failed: int) -> None:
    """Count what the thread of the model has done."""
    metrics.waiting.set(thread.waiting)
    metrics.active.set(thread.active)
    metrics.steps.inc(steps)
    metrics.failed_steps.inc(failed)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any free one.

    Raises:
      OSError: one line on why it cannot.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"--host={host} --port={port}: {error.strerror or error}") from None


def address(listening: socket.socket) -> str:
    """Where a server is, and for whom."""
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    alone = ipaddress.ip_address(host).is_loopback
    whom = "this machine alone" if alone else "every machine that can reach it, without a password"
    return f"http://{shown}:{port}, for {whom}"


def serve(state: State, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT.

    Requests that run then have `drain_seconds` to end, while others are refused; a second signal
    ends them at once.

    Raises:
      Exception: what `state.thread.ready` has, if the model cannot be loaded.
    """
    asyncio.run(_serve(state, listening))
    state.thread.stop()
    state.thread.join(LAST)
    if state.thread.busy:  # it compiles or loads, which cannot be interrupted
        sys.stdout.flush()
        os._exit(0)
    if state.thread.loaded:
        state.thread.store.close()  # or the process would first load the adapters that wait


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: they begin to drain the server, and do not close its socket."""
        yield


async def _serve(state: State, listening: socket.socket) -> None:
    stop, at_once = _signals()
    server = _Server(
        uvicorn.Config(
            make_app(state),
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=int(LAST),
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        state.thread.start()
        await _first(asyncio.wrap_future(state.thread.ready), stop.wait(), serving)
        if not stop.is_set():
            state.thread.ready.result(0)
            state.status = READY
            held = ", ".join(state.thread.store.held()) or "no adapter"
            print(
                f"serving {state.name}, with {held} on the device, on {address(listening)}",
                flush=True,
            )
            ended = asyncio.wrap_future(state.thread.ended)
            await _first(stop.wait(), serving, ended)
            if ended.done():
                ended.result()
        state.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(state.settings.drain_seconds):
                await _first(_ended(state), at_once.wait())
        if state.in_flight:
            state.thread.abort(unavailable("the server ends", DRAINING))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST):
                    await _ended(state)
    finally:
        server.should_exit = True
        await serving


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Set by the first and by the second signal that ends the server."""
    stop, at_once = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (at_once if stop.is_set() else stop).set()

    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, signalled)
    return stop, at_once


async def _ended(state: State) -> None:
    while state.in_flight or state.answering:
        await asyncio.sleep(TICK)


async def _first(*waited: Any) -> None:
    """Wait for the first of some awaitables; the others go on if they are tasks or futures."""
    tasks = [asyncio.ensure_future(each) for each in waited]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task, each in zip(tasks, waited, strict=True):
        if task is not each:
            task.cancel()
        if task in done and not task.cancelled():
            task.exception()  # asyncio writes a traceback of an error that nobody asks for
