"""The tokens that a request asks to continue, within what a lane holds."""

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
      ApiError: 422 for more tokens than that; 400 for a prompt without tokens or with one that the
        model has not, and for a conversation that the model's template refuses.
    """
    ended = () if asked.ignore_eos or base.tokenizer.eos_id is None else (base.tokenizer.eos_id,)
    drawn = {} if asked.temperature == 0 else {"top_p": asked.top_p, "top_k": asked.top_k}
    seed = {} if asked.temperature == 0 else {"seed": asked.seed}
    sampling = Sampling(asked.temperature, **drawn, **seed)
    stop_ids = tuple(sorted({*ended, *asked.stop_token_ids}))
    found = []
    for ids in _prompts(base, asked):
        limit = _limit(len(ids), asked, most)
        found.append(Text(ids, limit, sampling, stop_ids))
    return found


def _limit(length: int, asked: Asked, most: int) -> int:
    """How many tokens may follow a prompt."""
    room, given = most - length, asked.max_tokens
    if room < 1 or (given is not None and given > room):
        follows = "" if given is None else f" and {given} are to follow"
        raise ApiError(
            422,
            f"the prompt has {length} tokens{follows}; together there may be {most}",
            param="max_tokens" if room >= 1 else "prompt",
            code="context_length_exceeded",
        )
    if given is not None:
        return given
    return room if asked.usual_tokens is None else min(asked.usual_tokens, room)


def _prompts(base: BaseModel, asked: Asked) -> list[tuple[int, ...]]:
    backend = base.tokenizer.backend
    if asked.messages:
        text = _rendered(base, asked)
        return [tuple(backend.encode(text, add_special_tokens=False).ids)]
    found = []
    for each in asked.prompts:
        ids = tuple(backend.encode(each).ids) if isinstance(each, str) else each
        if not ids:
            raise wrong("prompt", "'prompt' has no tokens; at least one is needed")
        if max(ids) >= base.shape.vocab_size:
            raise wrong("prompt", f"'prompt' has token {max(ids)}; the model has "
                                  f"{base.shape.vocab_size}")  # fmt: skip
        found.append(ids)
    return found


def _rendered(base: BaseModel, asked: Asked) -> str:
    if base.template is None:
        raise ApiError(400, "the model has no chat template; use /v1/completions", code="no_chat")
    try:
        return base.template.render(asked.messages, add_generation_prompt=True)
    except ValueError as error:
        said = str(error).removeprefix(f"{base.template.origin}: ")
        raise wrong("messages", f"'messages': {said}") from None
