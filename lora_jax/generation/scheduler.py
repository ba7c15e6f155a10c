"""Continuous batching: texts of many adapters, side by side, that come and go between tokens.

For example:

    scheduler = Scheduler(bank, lanes=8, capacity=512)
    number = scheduler.submit(Request(slot, prompt_ids, max_new_tokens=64, stop_ids=(2,)))
    while scheduler.waiting or scheduler.active:
        for event in scheduler.step():
            ...
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

from lora_jax.generation import lanes as programs
from lora_jax.generation.choose_token import FAILED, GREEDY, Sampling
from lora_jax.generation.lanes import separate_bank
from lora_jax.methods.checks import require_count
from lora_jax.models.parts.config_checks import check_integer, token_ids
from lora_jax.serving.bank import Bank
from lora_jax.serving.bank_arrays import shape_of
from lora_jax.serving.entries import Adapter
from lora_jax.serving.programs import ProgramsOfBanks

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclasses.dataclass(frozen=True)
class Request:
    """A text to continue.

    Args:
        slot: the adapter's in the bank; 0 is the bare base.
        prompt_ids: one token at least.
        max_new_tokens: the most tokens of the text. It ends earlier where its lane is full: the
            prompt and all new tokens but the last must fit in there.
        sampling: how tokens are chosen; by default the likeliest.
        stop_ids: the tokens that end the text.
    """

    slot: int
    prompt_ids: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    stop_ids: Collection[int] = ()


class Event(NamedTuple):
    """What happened to a text: its next token, its end, or both.

    The last token comes with `finish`: "stop" for one of `stop_ids`, "length" for any other.
    "cancelled" comes without a token, and so does "error": the model's logits are not numbers, or
    a program failed.
    """

    number: int
    token: int | None
    finish: Finish | None = None


@dataclasses.dataclass(eq=False)
class _Text:
    """A text in a lane, and how many tokens it may still get."""

    number: int
    request: Request
    left: int


class Scheduler:
    """Continues texts token by token, as many at a time as there are lanes; others wait.

    A text gets the tokens that it gets alone, whatever else there is. One thread at a time may use
    a scheduler.

    Args:
        bank: its `forward` is a `CachedStep`. It belongs to the scheduler from now on.
        lanes: how many texts there are at most at a time. All of them are computed in every step,
            busy or not.
        capacity: how many tokens a lane holds.
        compiled: the programs of this scheduler and of others, of which it drops what is not needed
            (`drop_programs`). By default, all schedulers share theirs, and drop none.

    Raises:
        ValueError: as `lanes.empty`.
    """

    def __init__(
        self,
        bank: Bank,
        *,
        lanes: int = 8,
        capacity: int = 512,
        compiled: ProgramsOfBanks[programs.Programs] | None = None,
    ):
        require_count("lanes", lanes)
        self._lanes = programs.empty(bank, lanes, capacity)
        self._shapes = jax.tree.map(shape_of, self._lanes)
        self._words, _ = programs.shapes(bank, capacity)
        self._busy: list[_Text | None] = [None] * lanes
        self._queue: deque[_Text] = deque()
        self._events: list[Event] = []
        self._next = 0
        self._bank, self._separate = bank, separate_bank(bank)
        self._compiled = compiled or ProgramsOfBanks(lambda: programs.SHARED)
        self._programs = self._compiled.of(bank)

    # -- adapters ----------------------------------------------------------------------------------

    @property
    def bank(self) -> Bank:
        """The adapters. It may be set to another bank of the same base between steps.

        Texts go on with what is in their slots then: leave those in `slots` as they are.
        """
        return self._bank

    @bank.setter
    def bank(self, bank: Bank) -> None:
        same = bank.base.base is self._bank.base.base
        known = self._separate.base.base if same else None
        separate = separate_bank(bank, known)  # it may fail, and then the old one stays
        self._bank, self._separate = bank, separate
        self._programs = self._compiled.of(bank)

    def let_go(self) -> None:
        """Hold no memory of the arrays of `bank`, so that a put by others may take them (`donate`).

        Set `bank` before the next step, also where nothing was put.
        """
        # XLA takes no array in whose memory there are others, of separate layers, too.
        self._separate = dataclasses.replace(self._separate, held=self._bank.held)

    def put(self, slot: int, adapter: Adapter) -> None:
        """Put an adapter into a slot of the bank, without a copy of the others.

        Raises:
            ValueError: a text uses the slot, or as `Bank.put`.
        """
        self._change(slot, lambda bank: bank.put(slot, adapter, donate=True))

    def remove(self, slot: int) -> None:
        """Leave the base alone in a slot of the bank, without a copy of the others.

        Raises:
            ValueError: a text uses the slot, or as `Bank.remove`.
        """
        self._change(slot, lambda bank: bank.remove(slot, donate=True))

    def _change(self, slot: int, change: Callable[[Bank], Bank]) -> None:
        if slot in self.slots:
            raise ValueError(f"slot {slot} is used by a text that has not ended")
        bank = self._bank
        self.let_go()
        try:
            bank = change(bank)
        finally:
            self.bank = bank

    # -- texts -------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """How many tokens a lane holds."""
        return self._lanes.capacity

    @property
    def waiting(self) -> tuple[int, ...]:
        """The numbers of texts that wait for a lane, the next one first."""
        return tuple(text.number for text in self._queue)

    @property
    def active(self) -> tuple[int, ...]:
        """The numbers of texts that are in a lane."""
        return tuple(text.number for text in self._busy if text)

    @property
    def slots(self) -> frozenset[int]:
        """The slots of all texts, waiting and active."""
        return frozenset(text.request.slot for text in (*self._queue, *self._busy) if text)

    def submit(self, request: Request) -> int:
        """Let a text wait for a lane, and return its number.

        Raises:
            ValueError: the bank has no such slot, the prompt is empty, does not fit in a lane or
                has a token that the model has not, or a number is out of its range.
        """
        length = len(request.prompt_ids)
        programs.require_prompt(length, self.capacity)
        check_integer("slot", request.slot, least=0, most=self.bank.capacity)
        check_integer("max_new_tokens", request.max_new_tokens, least=1)
        token_ids("stop_ids", list(request.stop_ids))
        ids = np.asarray(request.prompt_ids)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"a prompt must be whole numbers, got {ids.dtype}{list(ids.shape)}")
        if (wrong := ids[(ids < 0) | (ids >= self._words)]).size:
            raise ValueError(f"a prompt has token {wrong[0]}; the model has 0 to {self._words - 1}")
        left = min(request.max_new_tokens, self.capacity - length + 1)
        self._queue.append(_Text(self._next, request, left))
        self._next += 1
        return self._next - 1

    def warm_up(self) -> None:
        """Compile all programs now. Else the first text of each of `lanes.buckets` waits for them.

        Raises:
            ValueError: there are texts in lanes.
        """
        if self.active:
            raise ValueError("only without texts in lanes can a scheduler warm up")
        self._programs.compile(self._separate, self._lanes)
        self._lanes = programs.release(self._lanes, 0)
        self._lanes, _ = self._programs.advance(self._separate, self._lanes)

    def compile(self, bank: Bank) -> None:
        """Compile all programs for another bank of the same base, before `bank` is set to it.

        Another thread may call this while texts go on.

        Args:
            bank: its arrays may be shapes (`Bank.shapes`).
        """
        separate = separate_bank(bank, self._separate.base.base)
        self._compiled.compile(bank, lambda own: own.compile(separate, self._shapes))

    def compiled(self, bank: Bank) -> bool:
        """Whether there are programs for another bank of the same base."""
        return bank in self._compiled

    def drop_programs(self) -> None:
        """Free the memory of programs for banks that have something which `bank` has not."""
        self._compiled.drop(self._bank)

    def cancel(self, number: int) -> None:
        """End a text; the next step says so. One that has ended already is left alone."""
        for text in tuple(self._queue):
            if text.number == number:
                self._queue.remove(text)
                self._events.append(Event(number, None, "cancelled"))
        for lane, text in enumerate(self._busy):
            if text and text.number == number:
                self._end(lane, "cancelled")

    def step(self) -> list[Event]:
        """Admit texts that wait to free lanes, and continue all by one token.

        A text that is admitted gets its first token, and if that does not end it, the second one.
        If a program fails, its error is raised, all texts in lanes end, as the next step says, and
        those that wait go on waiting.

        Returns:
            What happened since the last step. All that happened to one text is in order.
        """
        try:
            self._step()
        except BaseException:
            # What the program was given may be gone.
            for lane, text in enumerate(self._busy):
                if text:
                    self._end(lane, "error", release=False)
            self._lanes = programs.empty(self._bank, len(self._busy), self.capacity)
            raise
        events, self._events = self._events, []
        return events

    def _step(self) -> None:
        for lane in range(len(self._busy)):
            while self._queue and self._busy[lane] is None:
                self._begin(lane, self._queue.popleft())
        if any(self._busy):
            self._lanes, tokens = self._programs.advance(self._separate, self._lanes)
            for lane, token in enumerate(np.asarray(tokens).tolist()):
                self._add(lane, token)

    def _begin(self, lane: int, text: _Text) -> None:
        self._busy[lane], own = text, text.request
        self._lanes, token = self._programs.admit(
            self._separate, self._lanes, lane, own.slot, own.prompt_ids, own.sampling
        )
        self._add(lane, int(token))

    def _add(self, lane: int, token: int) -> None:
        """Give the text in a lane, if there is one, its next token."""
        text = self._busy[lane]
        if text is None:
            return
        text.left -= 1
        if token == FAILED:
            self._end(lane, "error")
        elif token in text.request.stop_ids:
            self._end(lane, "stop", token)
        elif text.left == 0:
            self._end(lane, "length", token)
        else:
            self._events.append(Event(text.number, token))

    def _end(
        self, lane: int, finish: Finish, token: int | None = None, *, release: bool = True
    ) -> None:
        text, self._busy[lane] = self._busy[lane], None
        assert text is not None
        self._events.append(Event(text.number, token, finish))
        if release:
            self._lanes = programs.release(self._lanes, lane)
