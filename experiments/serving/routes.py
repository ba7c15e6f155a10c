"""The routes for clients: models, completions and chats."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from experiments.serving import answers
from experiments.serving.answers import Answer, Choice
from experiments.serving.asked import Asked, read_chat, read_completion
from experiments.serving.errors import ApiError
from experiments.serving.http import DIGEST, Stream, read_json, unless_gone
from experiments.serving.running import Running, running
from experiments.serving.state import State
from experiments.serving.text_stream import TextStream
from experiments.serving.texts import texts_of

GRACE = 10.0
"""Seconds that a client may take for the end of a stream, after its time."""


class Routes:
    """The endpoints of one server."""

    def __init__(self, state: State):
        self._state = state

    async def models(self, request: Request) -> Response:
        """The base and the adapters, with the digests of those that are in slots."""
        state = self._state
        state.require_ready()
        names = await asyncio.to_thread(state.folder.names)
        held = await asyncio.to_thread(state.thread.store.held)
        found = [_model(state.name, None, state.base.digest)]
        found += [_model(name, state.name, held.get(name)) for name in names if name != state.name]
        return JSONResponse({"object": "list", "data": found})

    async def completions(self, request: Request) -> Response:
        content = await read_json(request, self._state)
        return await self._answer(request, read_completion(content))

    async def chat(self, request: Request) -> Response:
        content = await read_json(request, self._state)
        return await self._answer(request, read_chat(content))

    async def _answer(self, request: Request, asked: Asked) -> Response:
        state = self._state
        state.require_ready()
        began = time.monotonic()
        if state.base.labels:
            raise ApiError(404, f"{state.name} is an encoder: use /v1/classify")
        adapter = None if asked.model == state.name else asked.model
        texts = await asyncio.to_thread(texts_of, state.base, asked, state.settings.tokens)
        context = contextlib.AsyncExitStack()
        try:
            begun = running(state, adapter, texts)
            found = await unless_gone(request, context.enter_async_context(begun))
            answer = Answer(bool(asked.messages), asked.model, found.digest)
            state.metrics.tokens.labels("prompt").inc(_prompt_tokens(texts))
            told = _Told(state, asked, answer, found, texts, began)
            headers = {DIGEST: found.digest}
            if asked.stream:
                owned = context.pop_all()
                seconds = state.settings.time_limit + GRACE
                return Stream(told.streamed(), owned.aclose, headers, seconds)
            return JSONResponse(await unless_gone(request, told.whole()), headers=headers)
        finally:
            await context.aclose()


class _Told:
    """The answer to a request, made of the steps of its job.

    Args:
      began: when the request had come, by `time.monotonic`.
    """

    def __init__(
        self, state: State, asked: Asked, answer: Answer, found: Running, texts: Any, began: float
    ):
        self._state, self._asked, self._answer, self._found = state, asked, answer, found
        self._prompt, self._completion = _prompt_tokens(texts), 0
        backend = state.base.tokenizer.backend
        # An answer of a chat is a text of its own; a completion continues the text of its prompt.
        before = [() if asked.messages else each.prompt_ids for each in texts]
        self._streams = [TextStream(backend, asked.stop, prompt) for prompt in before]
        self._began = began

    async def whole(self) -> dict[str, Any]:
        """The JSON of the answer."""
        parts: list[list[str]] = [[] for _ in self._streams]
        ends = ["length"] * len(parts)
        async for row, text, finish in self._pieces():
            parts[row].append(text)
            ends[row] = finish or ends[row]
        choices = [Choice("".join(part), end) for part, end in zip(parts, ends, strict=True)]
        return self._answer.whole(choices, self._usage())

    async def streamed(self) -> AsyncIterator[str]:
        """The events of the answer; an error is the last of them."""
        if self._asked.messages:
            yield self._answer.opening()
        try:
            async for row, text, finish in self._pieces():
                if text or finish:
                    yield self._answer.piece(row, text, finish)
        except ApiError as error:
            yield answers.event(error.body)
            return
        if self._asked.include_usage:
            yield self._answer.counted(self._usage())
        yield answers.END

    async def _pieces(self) -> AsyncIterator[tuple[int, str, str | None]]:
        """Text as it becomes certain, row by row; the last of a row says why it ends."""
        metrics = self._state.metrics
        async for row, token, finish in self._found.steps():
            stream = self._streams[row]
            if not self._completion:
                metrics.first_token.observe(time.monotonic() - self._began)
            self._completion += 1
            metrics.tokens.labels("completion").inc()
            text = "" if finish == "stop" else stream.add(token)
            if finish is not None:
                text += stream.end()
            if stream.stopped:
                finish = "stop"
                self._found.cut(row)
            yield row, text, finish

    def _usage(self) -> dict[str, int]:
        return answers.usage(self._prompt, self._completion)


def _prompt_tokens(texts: Any) -> int:
    return sum(len(each.prompt_ids) for each in texts)


def _model(name: str, root: str | None, digest: str | None) -> dict[str, Any]:
    """An entry of /v1/models; `digest` is null for an adapter that is not in a slot."""
    own = {"id": name, "object": "model", "created": 0, "owned_by": "lora-jax"}
    return {**own, "root": root or name, "parent": root, "digest": digest}
