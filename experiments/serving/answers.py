"""The shapes of answers, those of OpenAI: a completion or a chat, whole or as a stream."""

import dataclasses
import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

END = "data: [DONE]\n\n"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The text after one prompt, and why it ended: `stop` or `length`."""

    text: str
    finish: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to one request, in the form that it asked for.

    Args:
      chat: whether it is the answer to a conversation.
      model: as the request names it.
      digest: of the adapter that computes it.
    """

    chat: bool
    model: str
    digest: str
    id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """The JSON of an answer that is not a stream."""
        found = []
        for index, each in enumerate(choices):
            said: dict[str, Any] = {"text": each.text}
            if self.chat:
                said = {"message": {"role": "assistant", "content": each.text, "refusal": None}}
            found.append(_choice(index, said, each.finish))
        return {**self._head(streamed=False), "choices": found, "usage": usage}

    def opening(self) -> str:
        """What the stream of a chat begins with: the role of who answers."""
        delta = {"delta": {"role": "assistant", "content": ""}}
        return self._event([_choice(0, delta, None)])

    def piece(self, index: int, text: str, finish: str | None) -> str:
        """One event of a stream."""
        said: dict[str, Any] = {"text": text}
        if self.chat:
            said = {"delta": {"content": text} if text else {}}
        return self._event([_choice(index, said, finish)])

    def counted(self, usage: dict[str, int]) -> str:
        """The event of a stream that counts its tokens."""
        return self._event([], usage=usage)

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        return event({**self._head(streamed=True), "choices": choices, **more})

    def _head(self, streamed: bool) -> dict[str, Any]:
        kind, before = "text_completion", "cmpl"
        if self.chat:
            kind, before = "chat.completion.chunk" if streamed else "chat.completion", "chatcmpl"
        return {
            "id": f"{before}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.digest,
        }


def event(content: dict[str, Any]) -> str:
    """A server-sent event with a JSON object."""
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


def usage(prompt: int, completion: int) -> dict[str, int]:
    """The counts of tokens, of prompts and of what was generated, with the token that ends it."""
    both = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {**both, "total_tokens": prompt + completion}


def _choice(index: int, said: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": index, **said, "logprobs": None, "finish_reason": finish}
