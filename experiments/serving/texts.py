"""From texts to tokens and back: what a request continues or classifies, and what is said of it."""

import secrets
from collections.abc import Sequence

import tokenizers

from experiments.serving.base_model import BaseModel
from experiments.serving.engines import Labelled
from experiments.serving.errors import ApiError, wrong
from experiments.serving.request_schema import (
    ChatRequest,
    GenerationRequest,
    TextOrPair,
)
from lora_jax.generation.choose_token import Sampling
from lora_jax.generation.scheduler import Request

PART = "\ufffd"
"""What a character is decoded as while some of its bytes are missing."""
LOOKED_AT = 8
"""How many tokens at the end of a prompt are searched for its text."""


class TextStream:
    """Gives the text of one sequence bit by bit.

    Joined, what `add` and `end` give is the decoding of all tokens, without special tokens, up to
    the first stop text. The beginning of a stop text is held back until it is known not to be one.

    Args:
      stops: the texts that end the sequence, which are not given themselves.
      prompt: the tokens that the sequence continues, if its text is to continue theirs: some
        tokenizers drop a space at the beginning.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        stops: Sequence[str] = (),
        prompt: Sequence[int] = (),
    ):
        self._backend, self._stops = backend, stops
        self._ids = self._last_text(prompt)
        self._begin, self._read = 0, len(self._ids)
        self._pending = ""
        self.stopped = False
        """Whether a stop text has been found."""

    def add(self, token: int) -> str:
        """The text that is certain with one more token."""
        self._ids.append(token)
        self._pending += self._decoded(last=False)
        return self._cut(last=False)

    def end(self) -> str:
        """The text that was held back."""
        if self.stopped:
            return ""
        self._pending += self._decoded(last=True)
        return self._cut(last=True)

    def _decoded(self, last: bool) -> str:
        """The text of the tokens that have not been given.

        They are decoded with those of the text before them, as some tokenizers drop a space at the
        beginning.
        """
        before = self._text(self._ids[self._begin : self._read])
        now = self._text(self._ids[self._begin :])
        if now.endswith(PART) and not last:
            return ""
        if len(now) > len(before):
            self._begin = self._read
        self._read = len(self._ids)
        return now[len(before) :]

    def _last_text(self, prompt: Sequence[int]) -> list[int]:
        """The last tokens of a prompt, as few as have a text, without parts of characters."""
        for length in range(1, min(len(prompt), LOOKED_AT) + 1):
            last = list(prompt[-length:])
            text = self._text(last)
            if text and PART not in text:
                return last
        return []

    def _text(self, ids: Sequence[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=True)

    def _cut(self, last: bool) -> str:
        places = [place for stop in self._stops if (place := self._pending.find(stop)) >= 0]
        if places:
            self.stopped = True
            return self._pending[: min(places)]
        kept = 0 if last else max((_begun(self._pending, stop) for stop in self._stops), default=0)
        end = len(self._pending) - kept
        text, self._pending = self._pending[:end], self._pending[end:]
        return text


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop text."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def texts_of(base: BaseModel, asked: GenerationRequest, most: int) -> list[Request]:
    """What the engine continues, for each prompt of a request or for its conversation; slots are 0.

    Args:
      most: the most tokens of a prompt and what follows it.

    Raises:
      ApiError: 422 for more tokens than that; 400 for a prompt or a conversation without tokens or
        with one that the model has not, and for a conversation that the model's template refuses.
    """
    backend, param = base.tokenizer.backend, "prompt"
    if isinstance(asked, ChatRequest):
        rendered, param = _rendered(base, asked), "messages"
        encoded = [backend.encode(rendered, add_special_tokens=False).ids]
    else:
        encoded = [backend.encode(x).ids if isinstance(x, str) else x for x in asked.prompt]
    for ids in encoded:
        if not ids:
            raise wrong(param, f"'{param}' has no tokens; at least one is needed")
        if max(ids) >= (size := base.shape.vocab_size):
            raise wrong(param, f"'{param}' has token {max(ids)}; the model has {size}")
    ends = {*base.shape.eos_token_id, base.tokenizer.eos_id} - {None}
    stop_ids = tuple(sorted({*(() if asked.ignore_eos else ends), *asked.stop_token_ids}))
    return [
        Request(0, tuple(ids), _limit(len(ids), asked, most, param), _sampling(asked), stop_ids)
        for ids in encoded
    ]


def _sampling(asked: GenerationRequest) -> Sampling:
    """How one text is drawn. Equal prompts differ unless the request has a seed."""
    if asked.temperature == 0:
        return Sampling()
    seed = secrets.randbits(31) if asked.seed is None else asked.seed % 2**31
    return Sampling(asked.temperature, asked.top_p, asked.top_k, seed)


def _limit(length: int, asked: GenerationRequest, most: int, param: str) -> int:
    """How many tokens may follow a prompt."""
    room, given = most - length, asked.limit
    if room < 1 or (given is not None and given > room):
        follows = "" if given is None else f" and {given} are to follow"
        raise ApiError(
            422,
            f"the prompt has {length} tokens{follows}; together there may be {most} "
            "(--tokens of the server)",
            param="max_tokens" if room >= 1 else param,
            code="context_length_exceeded",
        )
    return min(room, asked.usual_tokens or room) if given is None else given


def _rendered(base: BaseModel, asked: ChatRequest) -> str:
    if base.template is None:
        raise ApiError(400, "the model has no chat template; use /v1/completions", code="no_chat")
    messages = [message.for_template() for message in asked.messages]
    try:
        return base.template.render(messages, add_generation_prompt=True)
    except ValueError as error:
        said = str(error).removeprefix(f"{base.template.origin}: ")
        raise wrong("messages", f"'messages': {said}") from None


def labelled(base: BaseModel, inputs: list[TextOrPair], most: int) -> list[Labelled]:
    """The tokens of texts, or of pairs of texts, to classify.

    Raises:
      ApiError: 422, for a text of more than `most` tokens.
    """
    found = []
    for index, each in enumerate(inputs):
        first, second = (each, None) if isinstance(each, str) else each
        encoding = base.tokenizer.backend.encode(first, second)
        if len(encoding.ids) > most:
            raise ApiError(
                422,
                f"text {index} has {len(encoding.ids)} tokens; there may be {most} "
                "(--tokens of the server)",
                param="input",
                code="context_length_exceeded",
            )
        found.append(Labelled(tuple(encoding.ids), tuple(encoding.type_ids)))
    return found
