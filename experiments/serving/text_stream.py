"""The text of tokens as they come: whole characters, up to the first stop text."""

from collections.abc import Sequence

import tokenizers

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
