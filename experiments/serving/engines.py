"""What computes the rows of requests, a few at a time: texts that go on, and texts with classes.

A step gives the number, the value and the end of rows. One that raises an error must be followed by
one that gives the end `error` of the rows that it has spoilt.
"""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import Array

from lora_jax.generation.lanes import Programs, buckets
from lora_jax.generation.scheduler import Request, Scheduler
from lora_jax.serving.bank import Bank
from lora_jax.serving.programs import ProgramsOfBanks


class Generating:
    """The engine of language models: its rows are of `Request`, its values tokens.

    Args:
      bank: any of the base, to begin with.
      lanes: how many texts are computed at a time; more of them wait.
      tokens: how many tokens a lane holds.
    """

    def __init__(self, bank: Bank, lanes: int, tokens: int):
        self._sizes = {"lanes": lanes, "capacity": tokens}
        self._programs = ProgramsOfBanks(Programs)
        self.restart(bank)

    def restart(self, bank: Bank) -> None:
        """Begin anew, without any text."""
        self._scheduler = Scheduler(bank, **self._sizes, compiled=self._programs)
        self._holds = True

    @property
    def waiting(self) -> int:
        return len(self._scheduler.waiting)

    @property
    def active(self) -> int:
        return len(self._scheduler.active)

    def submit(self, slot: int, row: Request) -> int:
        return self._scheduler.submit(dataclasses.replace(row, slot=slot))

    def cancel(self, number: int) -> None:
        self._scheduler.cancel(number)

    def step(self, bank: Bank) -> Iterator[tuple[int, int | None, str | None]]:
        """One token of each text in a lane: its number, the token, and why it ends."""
        self._set(bank)
        return iter(self._scheduler.step())

    def warm(self, bank: Bank) -> None:
        """Compile every program that texts need, whatever their lengths; without any text."""
        self._set(bank)
        self._scheduler.warm_up()

    def compile(self, shapes: Bank) -> None:
        """Compile the programs for another bank (`Bank.shapes`), while texts go on elsewhere."""
        self._scheduler.compile(shapes)

    def compiled(self, shapes: Bank) -> bool:
        """Whether there are programs for another bank (`Bank.shapes`)."""
        return self._scheduler.compiled(shapes)

    def take(self, bank: Bank) -> None:
        """Hold the arrays of a bank, and of no other; nor programs for what it has not."""
        self._set(bank)
        self._scheduler.drop_programs()

    def let_go(self) -> None:
        """Hold no memory of a bank's arrays until the next step, as a put takes them."""
        self._scheduler.let_go()
        self._holds = False

    def _set(self, bank: Bank) -> None:
        if bank is not self._scheduler.bank or not self._holds:
            self._scheduler.bank = bank
            self._holds = True


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A text, or a pair of texts, to classify: its tokens and their types."""

    prompt_ids: tuple[int, ...]
    type_ids: tuple[int, ...]


class Classifying:
    """The engine of encoders: its rows are of `Labelled`, its values probabilities, (classes,).

    Args:
      lanes: how many texts are computed at a time; others wait.
      tokens: the most tokens of a text.
    """

    def __init__(self, lanes: int, tokens: int):
        self._lanes, self._widths = lanes, buckets(tokens)
        # Of a function that nobody else has: JAX forgets what it made of a function with it.
        self._programs = ProgramsOfBanks(lambda: jax.jit(lambda *given: _probabilities(*given)))
        self._rows: collections.OrderedDict[int, tuple[int, Labelled]] = collections.OrderedDict()
        self._spoilt: list[int] = []
        self._next = 0

    def restart(self, bank: Bank) -> None:
        """Begin anew, without any text."""
        self._rows.clear()
        self._spoilt.clear()

    @property
    def active(self) -> int:
        return min(len(self._rows), self._lanes)

    @property
    def waiting(self) -> int:
        return len(self._rows) - self.active

    def submit(self, slot: int, row: Labelled) -> int:
        self._rows[self._next] = slot, row
        self._next += 1
        return self._next - 1

    def cancel(self, number: int) -> None:
        self._rows.pop(number, None)

    def step(self, bank: Bank) -> Iterator[tuple[int, np.ndarray | None, str | None]]:
        """The probabilities of the texts that have waited longest."""
        while self._spoilt:
            yield self._spoilt.pop(), None, "error"
        numbers = list(self._rows)[: self._lanes]
        if not numbers:
            return
        try:
            found = self._classified(bank, [self._rows[number] for number in numbers])
        except Exception:
            self._spoilt += numbers
            raise
        finally:
            for number in numbers:
                del self._rows[number]
        for number, own in zip(numbers, found, strict=False):
            good = bool(np.isfinite(own).all())
            yield number, own if good else None, "stop" if good else "error"

    def let_go(self) -> None:
        """Nothing: no step leaves anything of its bank here."""

    def take(self, bank: Bank) -> None:
        """Hold no programs for what a bank has not."""
        self._programs.drop(bank)

    def warm(self, bank: Bank) -> None:
        """Compile every program that texts need, whatever their lengths."""
        self.compile(bank)

    def compiled(self, shapes: Bank) -> bool:
        """Whether there are programs for another bank (`Bank.shapes`)."""
        return shapes in self._programs

    def compile(self, shapes: Bank) -> None:
        """Compile the programs for another bank, while texts wait elsewhere."""
        slots = np.zeros(self._lanes, np.int32)
        inputs = [np.zeros((3, self._lanes, width), np.int32) for width in self._widths]

        def compile(program: Any) -> None:
            for tokens in inputs:
                program.lower(shapes, slots, *tokens).compile()

        self._programs.compile(shapes, compile)

    def _classified(self, bank: Bank, rows: list[tuple[int, Labelled]]) -> np.ndarray:
        longest = max(len(row.prompt_ids) for _, row in rows)
        width = next(each for each in self._widths if each >= longest)
        slots = np.zeros(self._lanes, np.int32)
        ids, mask, types = np.zeros((3, self._lanes, width), np.int32)
        mask[:, 0] = 1  # a row without any token would be no numbers
        for place, (slot, row) in enumerate(rows):
            count, slots[place] = len(row.prompt_ids), slot
            ids[place, :count], types[place, :count] = row.prompt_ids, row.type_ids
            mask[place, :count] = 1
        return np.asarray(self._programs.of(bank)(bank, slots, ids, mask, types))


def _probabilities(bank: Bank, slots: Array, ids: Array, mask: Array, types: Array) -> Array:
    return jax.nn.softmax(bank.apply(slots, ids, mask, types), axis=-1)


Engine = Generating | Classifying
