"""How a command ends that a SIGTERM has asked to: what is trained is saved, and goes on later."""

import contextlib
from collections.abc import Callable, Iterator

from lora_jax.training.preemption import noted_sigterms

TEMPORARY_FAILURE = 75
"""The exit code of a program that should be started again (EX_TEMPFAIL of sysexits.h)."""


class Interrupted(SystemExit):
    """A SIGTERM came, and all that was trained is saved; the exit code is TEMPORARY_FAILURE."""

    def __init__(self) -> None:
        super().__init__(TEMPORARY_FAILURE)


@contextlib.contextmanager
def between_programs() -> Iterator[Callable[[], None]]:
    """Give a function to be called before each program, which raises Interrupted after a SIGTERM.

    Training heeds a SIGTERM itself (`lora_jax.training.preemption`). One that comes at another
    time, such as while results are written, is kept until the next program would begin. After the
    last program it has no effect.
    """

    def begin() -> None:
        if caught:
            print("interrupted before the next program; the same command goes on")
            raise Interrupted

    with noted_sigterms() as caught:
        yield begin
