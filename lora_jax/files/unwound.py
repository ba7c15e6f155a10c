"""Let SIGTERM end a process as an exception does, so that what is unfinished is cleared away."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """On SIGTERM, leave the code inside by a SystemExit; then the signal acts as it would have.

    Python's own way is to end the process at once, so that no `finally` runs. In another thread
    than the main one, and where SIGTERM is ignored, nothing changes.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    came = False

    def leave(number: int, frame: object) -> None:
        nonlocal came
        came = True
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:  # `before` is None if Python did not install the handler
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        if came:
            os.kill(os.getpid(), signal.SIGTERM)
