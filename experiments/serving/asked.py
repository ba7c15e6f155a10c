"""What a request for a completion asks for."""

import dataclasses
from typing import Any

from experiments.serving.errors import ApiError
from experiments.serving.fields import Fields, is_tokens

STOPS, STOP_TOKENS, PROMPTS = 16, 64, 64
"""The most stop texts, stop tokens and prompts of a request."""
ROLES = ("system", "developer", "user", "assistant")
Prompt = str | tuple[int, ...]
"""A text, or the ids of its tokens."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    # of completions
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    # of chats
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields of OpenAI that are not supported, with the values by which they change nothing."""
IGNORED = (
    *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention"),
)
"""Fields of OpenAI that change no answer."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request for completions of one or more prompts, or for the answer to a conversation."""

    model: str
    prompts: tuple[Prompt, ...]
    messages: tuple[dict[str, Any], ...]
    """A conversation; empty where there are prompts."""
    max_tokens: int | None
    """None: `usual_tokens`, or as many as there is room for if they are fewer."""
    usual_tokens: int | None
    """None: no limit."""
    temperature: float
    top_p: float
    top_k: int
    """0: all tokens."""
    seed: int | None
    """None: each text has one of its own."""
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    stream: bool
    include_usage: bool
    """Whether a stream ends with the counts of tokens."""


def read_completion(content: dict[str, Any]) -> Asked:
    """A request of /v1/completions; 16 tokens are usual, as at OpenAI.

    Raises:
      ApiError: 400, which names the field that is wrong or not supported.
    """
    fields = Fields(content)
    prompts = _prompts(fields)
    return _asked(fields, prompts, (), fields.integer("max_tokens", 1), 16)


def read_chat(content: dict[str, Any]) -> Asked:
    """A request of /v1/chat/completions. Errors are those of `read_completion`."""
    fields = Fields(content)
    messages = _messages(fields)
    old, new = (fields.integer(name, 1) for name in ("max_tokens", "max_completion_tokens"))
    if old is not None and new is not None and old != new:
        raise fields.wrong("max_tokens", "and 'max_completion_tokens' differ: give one")
    return _asked(fields, (), messages, old if new is None else new, None)


def _asked(
    fields: Fields,
    prompts: tuple[Prompt, ...],
    messages: tuple[dict[str, Any], ...],
    max_tokens: int | None,
    usual_tokens: int | None,
) -> Asked:
    model = fields.text("model")
    if not model:
        raise fields.wrong("model", "is missing: the base or an adapter, as /v1/models lists them")
    stream, options = fields.flag("stream"), fields.object("stream_options")
    include_usage = options.flag("include_usage")
    options.done({}, ("include_obfuscation",))
    if include_usage and not stream:
        raise fields.wrong("stream_options", "is of streams: it needs 'stream': true")
    top_p = fields.number("top_p", 0, 1, 1)
    if top_p == 0:
        raise fields.wrong("top_p", "must be above 0; a temperature of 0 takes the likeliest token")
    seed = fields.integer("seed", -(2**63))
    asked = Asked(
        model=model,
        prompts=prompts,
        messages=messages,
        max_tokens=max_tokens,
        usual_tokens=usual_tokens,
        temperature=fields.number("temperature", 0, 2, 1),
        top_p=top_p,
        top_k=fields.integer("top_k", 0, 2**31 - 1) or 0,
        seed=None if seed is None else seed % 2**31,
        stop=fields.texts("stop", STOPS),
        stop_token_ids=fields.integers("stop_token_ids", STOP_TOKENS),
        ignore_eos=fields.flag("ignore_eos"),
        stream=stream,
        include_usage=include_usage,
    )
    fields.done(NEUTRAL, IGNORED)
    return asked


def _prompts(fields: Fields) -> tuple[Prompt, ...]:
    """One prompt or several, each a text or a list of tokens."""
    value = fields.take("prompt")
    each = value if isinstance(value, list) and not is_tokens(value) else [value]
    if not all(isinstance(x, str) or (is_tokens(x) and x) for x in each) or value == []:
        raise fields.wrong("prompt", "must be a text, a list of tokens, or a list of these")
    if len(each) > PROMPTS:
        raise fields.wrong("prompt", f"has {len(each)} prompts; at most {PROMPTS} are taken")
    return tuple(x if isinstance(x, str) else tuple(x) for x in each)


def _messages(fields: Fields) -> tuple[dict[str, Any], ...]:
    value = fields.take("messages")
    if not isinstance(value, list) or not value:
        raise fields.wrong("messages", "must be a list of messages, and not empty")
    found = []
    for number, each in enumerate(value):
        if not isinstance(each, dict):
            raise fields.wrong(f"messages[{number}]", "must be an object")
        found.append(_message(Fields(each, f"messages[{number}].")))
    return tuple(found)


def _message(fields: Fields) -> dict[str, Any]:
    role = fields.take("role")
    if role not in ROLES:
        raise fields.wrong("role", f"must be one of {', '.join(ROLES)}")
    content = fields.take("content")
    parts = content if isinstance(content, list) else [content]
    text = "".join(_part(fields, number, part) for number, part in enumerate(parts))
    name = fields.text("name")
    fields.done({"tool_calls": ([],), "refusal": (), "audio": (), "function_call": ()})
    return {"role": role, "content": text} | ({"name": name} if name else {})


def _part(fields: Fields, number: int, part: Any) -> str:
    match part:
        case str():
            return part
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": str(kind)} if kind != "text":
            raise ApiError(
                400,
                f"'{fields.where}content[{number}]' is of type {kind[:50]!r}; only text is read",
                param=f"{fields.where}content",
                code="unsupported_parameter",
            )
    raise fields.wrong("content", "must be a text, or a list of parts of type text")
