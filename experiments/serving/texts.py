"""The tokens that a request asks to continue, within what a lane holds."""

import secrets

from experiments.serving.asked import Asked
from experiments.serving.base_model import BaseModel
from experiments.serving.errors import ApiError, wrong
from experiments.serving.generating import Text
from lora_jax.generation.choose_token import Sampling


def texts_of(base: BaseModel, asked: Asked, most: int) -> list[Text]:
    """What the engine continues, for each prompt of a request or for its conversation.

    Args:
      most: the most tokens of a prompt and what follows it.

    Raises:
      ApiError: 422 for more tokens than that; 400 for a prompt or a conversation without tokens or
        with one that the model has not, and for a conversation that the model's template refuses.
    """
    ends = {*base.shape.eos_token_id, base.tokenizer.eos_id} - {None}
    stop_ids = tuple(sorted({*(() if asked.ignore_eos else ends), *asked.stop_token_ids}))
    found = []
    for ids in _prompts(base, asked):
        limit = _limit(len(ids), asked, most)
        found.append(Text(ids, limit, _sampling(asked), stop_ids))
    return found


def _sampling(asked: Asked) -> Sampling:
    """How one text is drawn. Equal prompts differ unless the request has a seed."""
    if asked.temperature == 0:
        return Sampling()
    seed = secrets.randbits(31) if asked.seed is None else asked.seed
    return Sampling(asked.temperature, asked.top_p, asked.top_k, seed)


def _limit(length: int, asked: Asked, most: int) -> int:
    """How many tokens may follow a prompt."""
    room, given = most - length, asked.max_tokens
    if room < 1 or (given is not None and given > room):
        follows = "" if given is None else f" and {given} are to follow"
        raise ApiError(
            422,
            f"the prompt has {length} tokens{follows}; together there may be {most}",
            param="max_tokens" if room >= 1 else _param(asked),
            code="context_length_exceeded",
        )
    if given is not None:
        return given
    return room if asked.usual_tokens is None else min(asked.usual_tokens, room)


def _param(asked: Asked) -> str:
    """The field of a request that says what to continue."""
    return "messages" if asked.messages else "prompt"


def _prompts(base: BaseModel, asked: Asked) -> list[tuple[int, ...]]:
    backend, param = base.tokenizer.backend, _param(asked)
    if asked.messages:
        found = [tuple(backend.encode(_rendered(base, asked), add_special_tokens=False).ids)]
    else:
        given = asked.prompts
        found = [tuple(backend.encode(x).ids) if isinstance(x, str) else x for x in given]
    for ids in found:
        if not ids:
            raise wrong(param, f"'{param}' has no tokens; at least one is needed")
        if max(ids) >= (size := base.shape.vocab_size):
            raise wrong(param, f"'{param}' has token {max(ids)}; the model has {size}")
    return found


def _rendered(base: BaseModel, asked: Asked) -> str:
    if base.template is None:
        raise ApiError(400, "the model has no chat template; use /v1/completions", code="no_chat")
    try:
        return base.template.render(asked.messages, add_generation_prompt=True)
    except ValueError as error:
        said = str(error).removeprefix(f"{base.template.origin}: ")
        raise wrong("messages", f"'messages': {said}") from None
