"""End a sweep on a signal: with a line, and no process left."""

import contextlib
import signal
import sys
from collections.abc import Iterator

from experiments.runs.interruption import TEMPORARY_FAILURE
from experiments.sweeps.launchers import local


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the program as Ctrl-C does: with a line, and no process left.

    After SIGTERM, by which schedulers announce that they will end a process, workers save first. A
    second SIGTERM does not cut that short.
    """

    def stop(number: int, frame: object) -> None:
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise local.Terminated if number == signal.SIGTERM else KeyboardInterrupt

    for each in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(each, stop)
    try:
        yield
    except local.Terminated:
        print("stopped; the same command goes on from here")
        sys.exit(TEMPORARY_FAILURE)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")
        sys.exit(130)
