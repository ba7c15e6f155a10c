"""The routes for clients, with answers in the shapes of OpenAI: whole, or as streams."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from experiments.serving.engines import Labelled
from experiments.serving.errors import ApiError, wrong
from experiments.serving.request_schema import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    GenerationRequest,
    read,
    read_object,
)
from experiments.serving.state import Running, State, running
from experiments.serving.texts import TextStream, labelled, texts_of
from lora_jax.generation.scheduler import Request as TextRequest

DIGEST = "X-Adapter-Digest"
"""The header that says which version of an adapter has computed an answer."""
GRACE = 10.0
"""Seconds that a client may take for the end of a stream, after its time."""
END = "data: [DONE]\n\n"
T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]


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
        listed = [_model(state.name, None, state.base.digest)]
        listed += [_model(name, state.name, held.get(name)) for name in names if name != state.name]
        return JSONResponse({"object": "list", "data": listed})

    async def completions(self, request: Request) -> Response:
        return await self._generated(request, CompletionRequest)

    async def chat(self, request: Request) -> Response:
        return await self._generated(request, ChatRequest)

    async def classify(self, request: Request) -> Response:
        """The classes of texts, and of pairs of texts, by an encoder."""
        state = self._state
        asked = read(ClassifyRequest, await read_json(request, state))
        state.require_ready()
        if not state.base.labels:
            raise ApiError(404, f"{state.name} is a language model: it classifies nothing")
        if asked.model == state.name and state.base.fresh:
            raise wrong("model", f"{asked.model} has no head of its own: name an adapter")
        most = state.settings.tokens
        rows = await asyncio.to_thread(labelled, state.base, asked.input, most)
        body, digest = await unless_gone(request, self._classified(asked.model, rows))
        return JSONResponse(body, headers={DIGEST: digest})

    async def _classified(self, model: str, rows: list[Labelled]) -> tuple[dict[str, Any], str]:
        """The JSON of the answer, and the digest of the adapter that has computed it."""
        state, labels = self._state, self._state.base.labels
        data: list[dict[str, Any]] = [{} for _ in rows]
        async with running(state, state.adapter(model), rows) as job:
            async for row, probabilities, _ in job.steps():
                shown = dict(zip(labels, map(float, probabilities), strict=True))
                label = labels[int(probabilities.argmax())]
                data[row] = {"index": row, "label": label, "probabilities": shown}
        tokens = _prompt_tokens(rows)
        state.metrics.tokens.labels("prompt").inc(tokens)
        head = {"id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
        return {**head, "model": model, "data": data, "usage": _usage(tokens, 0)}, job.digest

    async def _generated(self, request: Request, kind: type[GenerationRequest]) -> Response:
        state = self._state
        asked, began = read(kind, await read_json(request, state)), time.monotonic()
        state.require_ready()
        if state.base.labels:
            raise ApiError(404, f"{state.name} is an encoder: use /v1/classify")
        texts = await asyncio.to_thread(texts_of, state.base, asked, state.settings.tokens)
        context = contextlib.AsyncExitStack()
        try:
            begun = running(state, state.adapter(asked.model), texts)
            job = await unless_gone(request, context.enter_async_context(begun))
            state.metrics.tokens.labels("prompt").inc(_prompt_tokens(texts))
            answer, headers = Answer(state, asked, job, texts, began), {DIGEST: job.digest}
            if asked.stream:
                owned = context.pop_all()
                seconds = state.settings.time_limit + GRACE
                return Stream(answer.streamed(), owned.aclose, headers, seconds)
            return JSONResponse(await unless_gone(request, answer.whole()), headers=headers)
        finally:
            await context.aclose()


class Answer:
    """The answer to a request of texts, in the form that it asks for, from the steps of its job.

    Args:
      began: when the request had come, by `time.monotonic`.
    """

    def __init__(
        self,
        state: State,
        asked: GenerationRequest,
        job: Running,
        texts: Sequence[TextRequest],
        began: float,
    ):
        self._state, self._asked, self._job, self._began = state, asked, job, began
        self._chat = isinstance(asked, ChatRequest)
        self._prompt, self._completion = _prompt_tokens(texts), 0
        backend = state.base.tokenizer.backend
        # An answer of a chat is a text of its own; a completion continues the text of its prompt.
        before = [() if self._chat else each.prompt_ids for each in texts]
        self._streams = [TextStream(backend, asked.stop, prompt) for prompt in before]
        self._id, self._created = uuid.uuid4().hex, int(time.time())

    async def whole(self) -> dict[str, Any]:
        """The JSON of an answer that is not a stream."""
        parts: list[list[str]] = [[] for _ in self._streams]
        ends = ["length"] * len(parts)
        async for row, text, finish in self._pieces():
            parts[row].append(text)
            ends[row] = finish or ends[row]
        choices = []
        for row, (part, finish) in enumerate(zip(parts, ends, strict=True)):
            content: dict[str, Any] = {"text": "".join(part)}
            if self._chat:
                message = {"role": "assistant", "content": content["text"], "refusal": None}
                content = {"message": message}
            choices.append(_choice(row, content, finish))
        usage = _usage(self._prompt, self._completion)
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    async def streamed(self) -> AsyncIterator[str]:
        """The events of the answer; an error is the last of them."""
        if self._chat:
            yield self._event([_choice(0, {"delta": {"role": "assistant", "content": ""}}, None)])
        try:
            async for row, text, finish in self._pieces():
                content: dict[str, Any] = {"text": text}
                if self._chat:
                    content = {"delta": {"content": text} if text else {}}
                if text or finish:
                    yield self._event([_choice(row, content, finish)])
        except ApiError as error:
            yield _event(error.body)
            return
        if self._asked.stream_options.include_usage:
            yield self._event([], usage=_usage(self._prompt, self._completion))
        yield END

    async def _pieces(self) -> AsyncIterator[tuple[int, str, str | None]]:
        """Text as it becomes certain, row by row; the last of a row says why it ends."""
        metrics = self._state.metrics
        async for row, token, finish in self._job.steps():
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
                self._job.cut(row)
            yield row, text, finish

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        return _event({**self._head("chat.completion.chunk"), "choices": choices, **more})

    def _head(self, of_chats: str) -> dict[str, Any]:
        """What every answer and every event begins with; chats have objects of their own."""
        return {
            "id": f"chatcmpl-{self._id}" if self._chat else f"cmpl-{self._id}",
            "object": of_chats if self._chat else "text_completion",
            "created": self._created,
            "model": self._asked.model,
            "system_fingerprint": self._job.digest,
        }


def _event(content: dict[str, Any]) -> str:
    """A server-sent event with a JSON object."""
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _choice(index: int, content: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": None, "finish_reason": finish}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    """The counts of tokens, of prompts and of what was generated, with the token that ends it."""
    both = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {**both, "total_tokens": prompt + completion}


def _prompt_tokens(rows: Sequence[TextRequest] | Sequence[Labelled]) -> int:
    return sum(len(each.prompt_ids) for each in rows)


def _model(name: str, root: str | None, digest: str | None) -> dict[str, Any]:
    """An entry of /v1/models; `digest` is null for an adapter that is not in a slot."""
    own = {"id": name, "object": "model", "created": 0, "owned_by": "lora-jax"}
    return {**own, "root": root or name, "parent": root, "digest": digest}


async def read_json(request: Request, state: State) -> dict[str, Any]:
    """The JSON object of a request's body.

    Raises:
      ApiError: 413, if it is longer than `max_body`. No more than that is kept. 415, if it is not
        said to be JSON: a page in a browser can send any other to a server on loopback. 408 or 503
        as for `State.body`. 400 as for `read_object`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind.lower() != "application/json":
        raise ApiError(415, "the body must be of Content-Type application/json")
    length, most = request.headers.get("content-length", "0"), state.settings.max_body
    body = bytearray()
    if length.isdecimal() and int(length) <= most:
        async with state.body():
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    break
            else:
                return read_object(bytes(body))
    raise ApiError(413, f"the body has more than {most} bytes", code="body_too_large")


async def unless_gone(request: Request, answer: Awaitable[T]) -> T:
    """Await an answer; cancel it if the client goes.

    Raises:
      ClientDisconnect: the client has gone.
    """
    work = asyncio.ensure_future(answer)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Stream(Response):
    """An answer in server-sent events, whose source is closed however it ends.

    Args:
      events: the source.
      close: called at the end, also if the client goes.
      seconds: how long the client may take to read all of it.
    """

    def __init__(
        self,
        events: AsyncIterator[str],
        close: Callable[[], Awaitable[Any]],
        headers: dict[str, str],
        seconds: float,
    ):
        super().__init__(None, 200, {**headers, "Cache-Control": "no-cache"}, "text/event-stream")
        del self.headers["content-length"]
        self._events, self._close, self._seconds = events, close, seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            begun = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **begun})
            with contextlib.suppress(ClientDisconnect, TimeoutError):
                async with asyncio.timeout(self._seconds):
                    await unless_gone(Request(scope, receive), self._send(send))
        finally:
            await self._close()

    async def _send(self, send: Any) -> None:
        async for event in self._events:
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def refused(error: ApiError) -> JSONResponse:
    """The answer that says an error."""
    return JSONResponse(error.body, error.status, error.headers)
