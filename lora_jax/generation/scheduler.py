"""Continuous batching: texts of many adapters, side by side, that come and go between tokens.

scheduler = Scheduler(bank, lanes=8, capacity=512)
number = scheduler.submit(Request(slot, prompt_ids, max_new_tokens=64, stop_ids=(2,)))
while scheduler.waiting or scheduler.active:
    for event in scheduler.step():
        ...
"""

import dataclasses
from collections import deque
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import numpy as np

from lora_jax.generation import lanes as lanes_module
from lora_jax.generation.choose_token import FAILED, GREEDY, Sampling
from lora_jax.generation.separate_bank import separate_bank
from lora_jax.methods.checks import require_count
from lora_jax.models.parts.config_checks import check_integer, token_ids
from lora_jax.serving.bank import Bank

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
    "cancelled" comes without a token, and so does "error": the model's logits are not numbers.
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
    a scheduler. `bank` may be set to another one between steps, of the same base: texts go on with
    what is in their slots now, so leave alone the slots in `slots`.

    Args:
        bank: its `forward` is a `CachedStep`.
        lanes: how many texts there are at most at a time. All of them are computed in every step,
            busy or not.
        capacity: how many tokens a lane holds.

    Raises:
        ValueError: as `lanes.empty`.
    """

    def __init__(self, bank: Bank, *, lanes: int = 8, capacity: int = 512):
        require_count("lanes", lanes)
        self._lanes = lanes_module.empty(bank, lanes, capacity)
        self._words, _ = lanes_module.shapes(bank, capacity)
        self._busy: list[_Text | None] = [None] * lanes
        self._queue: deque[_Text] = deque()
        self._cancelled: list[int] = []
        self._next = 0
        self.bank = bank

    @property
    def bank(self) -> Bank:
        """The adapters."""
        return self._bank

    @bank.setter
    def bank(self, bank: Bank) -> None:
        self._bank = bank
        self._prepared = separate_bank(bank)

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
        lanes_module.require_prompt(length, self.capacity)
        check_integer("slot", request.slot, least=0, most=self.bank.capacity)
        check_integer("max_new_tokens", request.max_new_tokens, least=1)
        token_ids("stop_ids", list(request.stop_ids))
        ids = np.asarray(request.prompt_ids)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"a prompt must be whole numbers, got {ids.dtype}{ids.shape}")
        if (wrong := ids[(ids < 0) | (ids >= self._words)]).size:
            raise ValueError(f"a prompt has token {wrong[0]}; the model has 0 to {self._words - 1}")
        left = min(request.max_new_tokens, self.capacity - length + 1)
        self._queue.append(_Text(self._next, request, left))
        self._next += 1
        return self._next - 1

    def cancel(self, number: int) -> None:
        """End a text; the next step says so. One that has ended already is left alone."""
        for text in self._queue:
            if text.number == number:
                self._queue.remove(text)
                self._cancelled.append(number)
                return
        for lane, text in enumerate(self._busy):
            if text and text.number == number:
                self._free(lane)
                self._cancelled.append(number)

    def step(self) -> list[Event]:
        """Admit texts that wait to free lanes, and continue all by one token.

        A text that is admitted gets its first token, and if that does not end it, the second one.

        Returns:
            What happened since the last step. All that happened to one text is in order.
        """
        events = [Event(number, None, "cancelled") for number in self._cancelled]
        self._cancelled.clear()
        for lane, text in enumerate(self._busy):
            while text is None and self._queue:
                text = self._busy[lane] = self._queue.popleft()
                events.append(self._begin(lane, text))
                text = self._busy[lane]
        if any(self._busy):
            self._lanes, tokens = lanes_module.advance(self._prepared, self._lanes)
            found = np.asarray(tokens)
            events += [
                self._written(lane, text, int(found[lane]))
                for lane, text in enumerate(self._busy)
                if text
            ]
        return events

    def _begin(self, lane: int, text: _Text) -> Event:
        request = text.request
        self._lanes, token = lanes_module.admit(
            self._prepared, self._lanes, lane, request.slot, request.prompt_ids, request.sampling
        )
        return self._written(lane, text, int(token))

    def _written(self, lane: int, text: _Text, token: int) -> Event:
        """What a token means for the text in a lane."""
        text.left -= 1
        if token == FAILED:
            self._free(lane)
            return Event(text.number, None, "error")
        finish: Finish | None = None
        if token in text.request.stop_ids:
            finish = "stop"
        elif text.left == 0:
            finish = "length"
        if finish:
            self._free(lane)
        return Event(text.number, token, finish)

    def _free(self, lane: int) -> None:
        self._busy[lane] = None
        self._lanes = lanes_module.release(self._lanes, lane)
