"""The engine of language models: texts of many adapters, continued side by side."""

import dataclasses
from collections.abc import Iterator

from lora_jax.generation.choose_token import Sampling
from lora_jax.generation.scheduler import Request, Scheduler
from lora_jax.serving.bank import Bank


@dataclasses.dataclass(frozen=True)
class Text:
    """A prompt to continue, as `Request` but for the slot."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    stop_ids: tuple[int, ...]


class Generating:
    """An `Engine` whose rows are of `Text`, and whose values are tokens.

    Args:
      bank: any of the base, to begin with.
      lanes: how many texts are computed at a time; more of them wait.
      tokens: how many tokens a lane holds.
    """

    def __init__(self, bank: Bank, lanes: int, tokens: int):
        self._sizes = {"lanes": lanes, "capacity": tokens}
        self.restart(bank)

    def restart(self, bank: Bank) -> None:
        """Begin anew, without any text."""
        self._scheduler = Scheduler(bank, **self._sizes)
        self._holds = True

    @property
    def waiting(self) -> int:
        return len(self._scheduler.waiting)

    @property
    def active(self) -> int:
        return len(self._scheduler.active)

    def submit(self, slot: int, row: Text) -> int:
        given = row.prompt_ids, row.max_new_tokens, row.sampling, row.stop_ids
        return self._scheduler.submit(Request(slot, *given))

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

    def let_go(self) -> None:
        """Hold no memory of a bank's arrays until the next step, as a put takes them."""
        self._scheduler.let_go()
        self._holds = False

    def _set(self, bank: Bank) -> None:
        if bank is not self._scheduler.bank or not self._holds:
            self._scheduler.bank = bank
            self._holds = True
