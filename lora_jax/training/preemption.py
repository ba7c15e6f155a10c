"""SIGTERM, by which schedulers announce that they will end a process, as a question to ask."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
    """Whether to save and end after a step, to be asked after each (`train.fit`'s `interrupted`).

    Inside, SIGTERM does not end the process, nor does a second one. Alone, a process is told so
    after the step that it came in; only in the main thread can it be caught, elsewhere it ends the
    process as ever. Of several, a SIGTERM to any one is told to all, about a second later and after
    the same step, by JAX's own service, which has caught the signal since `jax.distributed` began
    and does so to the end; its handler stays.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    caught: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    try:
        yield lambda step: bool(caught)
    finally:  # of a handler that Python did not install, it knows nothing
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
