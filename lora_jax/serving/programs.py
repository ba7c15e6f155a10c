"""What is compiled for banks, as long as it may be needed again."""

import collections
import threading
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax

from lora_jax.serving.bank import Bank

P = TypeVar("P")
KEPT = 4
"""The most structures whose programs are kept: those that were used last."""


class Structure(NamedTuple):
    """What programs are compiled for: all of a bank but its numbers."""

    treedef: Any
    contents: frozenset[Any]
    """What its adapters have: methods, names and shapes."""

    @classmethod
    def of(cls, bank: Bank) -> "Structure":
        """That of a bank, whose arrays may be shapes."""
        assert bank.held is not None
        contents = frozenset(
            (
                bank.held.methods[key.method] if key.method >= 0 else None,
                key._replace(method=0),
                x.shape,
                x.dtype,
            )
            for key, x in bank.held.arrays.items()
        )
        return cls(jax.tree.structure(bank), contents)


class ProgramsOfBanks(Generic[P]):
    """Programs for each structure that banks of one base have. Threads may share it.

    Args:
      make: makes an object that holds programs, of which none is compiled yet.
    """

    def __init__(self, make: Callable[[], P]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._found: collections.OrderedDict[Structure, P] = collections.OrderedDict()

    def __contains__(self, bank: Bank) -> bool:
        """Whether there are programs for a bank; to ask for them is to use them."""
        structure = Structure.of(bank)
        with self._lock:
            found = structure in self._found
            if found:
                self._found.move_to_end(structure)
        return found

    def of(self, bank: Bank) -> P:
        """The programs for a bank, which are made if there are none."""
        structure = Structure.of(bank)
        with self._lock:
            found = self._found.get(structure) or self._make()
            self._keep(structure, found)
        return found

    def compile(self, bank: Bank, compile: Callable[[P], object]) -> None:
        """Make programs for a bank, and have them once they are compiled."""
        made = self._make()
        compile(made)
        with self._lock:
            self._keep(Structure.of(bank), made)

    def drop(self, bank: Bank) -> None:
        """Let go of the programs for banks that have something which this one has not."""
        contents = Structure.of(bank).contents
        with self._lock:
            for structure in [each for each in self._found if not each.contents <= contents]:
                del self._found[structure]

    def _keep(self, structure: Structure, programs: P) -> None:
        self._found[structure] = programs
        self._found.move_to_end(structure)
        if len(self._found) > KEPT:
            self._found.popitem(last=False)
