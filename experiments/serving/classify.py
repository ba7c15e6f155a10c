"""The route of encoders: texts, or pairs of texts, are classified."""

import asyncio
import time
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from experiments.serving import answers
from experiments.serving.base_model import BaseModel
from experiments.serving.classifying import Labelled
from experiments.serving.errors import ApiError, wrong
from experiments.serving.fields import Fields
from experiments.serving.http import DIGEST, read_json, unless_gone
from experiments.serving.running import running
from experiments.serving.state import State

MOST = 64
"""The most texts of a request."""
TextOrPair = tuple[str] | tuple[str, str]


class Classify:
    """`POST /v1/classify`: `{"model": ADAPTER, "input": TEXT, or [TEXT or [TEXT, TEXT], ...]}`."""

    def __init__(self, state: State):
        self._state = state

    async def __call__(self, request: Request) -> Response:
        state = self._state
        model, texts = read_texts(await read_json(request, state))
        state.require_ready()
        if not state.base.labels:
            raise ApiError(404, f"{state.name} is a language model: it classifies nothing")
        adapter = None if model == state.name else model
        if adapter is None and state.base.fresh:
            raise wrong("model", f"{model} has no head of its own: name an adapter")
        most = state.settings.tokens
        rows = await asyncio.to_thread(labelled, state.base, texts, most)
        body, digest = await unless_gone(request, self._answer(model, adapter, rows))
        return JSONResponse(body, headers={DIGEST: digest})

    async def _answer(
        self, model: str, adapter: str | None, rows: list[Labelled]
    ) -> tuple[dict[str, Any], str]:
        labels = self._state.base.labels
        found: list[dict[str, Any]] = [{} for _ in rows]
        async with running(self._state, adapter, rows) as begun:
            async for row, probabilities, _ in begun.steps():
                shown = dict(zip(labels, map(float, probabilities), strict=True))
                label = labels[int(probabilities.argmax())]
                found[row] = {"index": row, "label": label, "probabilities": shown}
        tokens = sum(len(each.prompt_ids) for each in rows)
        self._state.metrics.tokens.labels("prompt").inc(tokens)
        head = {"id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
        return {**head, "model": model, "data": found, "usage": answers.usage(tokens, 0)}, (
            begun.digest
        )


def read_texts(content: dict[str, Any]) -> tuple[str, list[TextOrPair]]:
    """The model and the texts of a request.

    Raises:
      ApiError: 400, which names the field that is wrong.
    """
    fields = Fields(content)
    model, given = fields.text("model"), fields.take("input")
    fields.done({}, ("user",))
    if not model:
        raise fields.wrong("model", "is missing: the base or an adapter, as /v1/models lists them")
    each = [given] if isinstance(given, str) else given
    if not isinstance(each, list) or not 1 <= len(each) <= MOST:
        raise fields.wrong("input", f"must be a text or a list of 1 to {MOST}")
    return model, [_text(fields, x) for x in each]


def _text(fields: Fields, value: Any) -> TextOrPair:
    match value:
        case str():
            return (value,)
        case [str(first), str(second)]:
            return first, second
    raise fields.wrong("input", "must have texts, or pairs of texts")


def labelled(base: BaseModel, texts: list[TextOrPair], most: int) -> list[Labelled]:
    """The tokens of texts.

    Raises:
      ApiError: 422, for a text of more than `most` tokens.
    """
    found = []
    for index, each in enumerate(texts):
        encoding = base.tokenizer.backend.encode(each[0], each[1] if len(each) == 2 else None)
        if len(encoding.ids) > most:
            raise ApiError(
                422,
                f"text {index} has {len(encoding.ids)} tokens; there may be {most}",
                param="input",
                code="context_length_exceeded",
            )
        found.append(Labelled(tuple(encoding.ids), tuple(encoding.type_ids)))
    return found
