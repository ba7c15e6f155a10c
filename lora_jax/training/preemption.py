"""Ask whether SIGTERM has come, by which schedulers announce that they will end a process."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
    """Give a function that says whether to save and end after a step (`loop.fit`'s `interrupted`).

    Call the function after every step. Inside this context, SIGTERM does not end the process, nor
    does a second one. A single process is told of it after the step in which it came. If it came
    too late for that, the handler that was there before gets it at the end. It can be
    caught only in the main thread; in another thread, it ends the process as usual. With several
    processes, a SIGTERM to any one is told to all, about a second later and after the same step.
    JAX's own service does this: it catches the signal from the start of `jax.distributed` to the
    end, and its handler stays.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    told = False

    def interrupted(step: int) -> bool:
        nonlocal told
        told = bool(caught)
        return told

    caught: list[int] = []
    try:
        with noted_sigterms() as caught:
            yield interrupted
    finally:
        handler = signal.getsignal(signal.SIGTERM)
        if caught and not told and callable(handler):
            handler(signal.SIGTERM, None)


@contextlib.contextmanager
def noted_sigterms() -> Iterator[list[int]]:
    """Give a list of the SIGTERMs that came inside this context, where they do nothing else.

    In another thread than the main one, they cannot be caught: the list stays empty.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    try:
        yield caught
    finally:  # `before` is None if Python did not install the handler
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
