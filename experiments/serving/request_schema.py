"""What requests ask for, as typed models: a body is read strictly, and what is wrong is named."""

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    WrapValidator,
    model_validator,
)

from experiments.serving.errors import ApiError
from lora_jax.files import json_text
from lora_jax.messages import nearest

LARGEST = 2**63 - 1
LONGEST = 100
"""The most characters of a name in messages."""
STOPS, STOP_TOKENS, PROMPTS, INPUTS = 16, 64, 64, 64
"""The most stop texts, stop tokens, prompts and texts to classify of a request."""
ROLES = ("system", "developer", "user", "assistant")
Prompt = str | list[int]
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


class Refused(ValueError):
    """Why a value is refused, in the words that follow the name of its field.

    Args:
      code: a word for programs.
      field: the field of the value that is wrong; by default, the value itself.
      part: what else the message names, such as the number of an entry.
    """

    def __init__(
        self, reason: str, code: str = "invalid_value", *, field: str | None = None, part: str = ""
    ):
        super().__init__(reason)
        self.reason, self.code, self.part = reason, code, part
        self.fields = () if field is None else (field,)


def must(be: str) -> WrapValidator:
    """Say what a value must be, or have, that its type does not take."""

    def read(value: Any, inner: Callable[[Any], Any]) -> Any:
        try:
            return inner(value)
        except ValidationError:
            raise Refused(f"must {be}") from None

    return WrapValidator(read)


def _integral(value: Any) -> Any:
    """A whole number that is written with a point, such as 2.0, as an integer."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if whole else value


def _named(model: str) -> str:
    if not model:
        raise Refused("is missing: the base or an adapter, as /v1/models lists them")
    return model


def _is_tokens(value: Any) -> bool:
    """Whether a value is a list of whole numbers of 0 or more."""
    return isinstance(value, list) and all(
        isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 2**31 for x in value
    )


def _prompts(value: Any) -> list[Prompt]:
    """One prompt or several, each a text or a list of tokens."""
    prompts = value if isinstance(value, list) and not _is_tokens(value) else [value]
    if not all(isinstance(x, str) or (_is_tokens(x) and x) for x in prompts):
        raise Refused("must be a text, a list of tokens, or a list of these")
    if len(prompts) > PROMPTS:
        raise Refused(f"has {len(prompts)} prompts; at most {PROMPTS} are taken")
    return prompts


def _stops(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _inputs(value: Any) -> list[Any]:
    inputs = [value] if isinstance(value, str) else value
    if not isinstance(inputs, list) or not 1 <= len(inputs) <= INPUTS:
        raise Refused(f"must be a text or a list of 1 to {INPUTS}")
    return inputs


def _messages(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise Refused("must be a list of messages, and not empty")
    return value


def _content(value: Any) -> str:
    """The text of a message, whose parts are joined."""
    parts = value if isinstance(value, list) else [value]
    return "".join(_part(number, part) for number, part in enumerate(parts))


def _part(number: int, part: Any) -> str:
    match part:
        case str():
            return part
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": str(kind)} if kind != "text":
            reason = f"is of type {kind[:50]!r}; only text is read"
            raise Refused(reason, "unsupported_parameter", part=f"[{number}]")
    raise Refused("must be a text, or a list of parts of type text")


Required = Field(validate_default=True)
"""The default of such a field is refused."""
Flag = Annotated[StrictBool, must("be true or false")]
Model = Annotated[StrictStr, must("be a text"), AfterValidator(_named), Required]
MaxTokens = Annotated[
    StrictInt | None,
    Field(ge=1),  # what a server takes at most is known where a prompt is
    BeforeValidator(_integral),
    must("be a whole number of 1 or more"),
]
TextOrPair = StrictStr | Annotated[list[StrictStr], Field(min_length=2, max_length=2)]


class _Object(BaseModel):
    """An object of a request. A field of null counts as missing."""

    model_config = ConfigDict(extra="allow", frozen=True)
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Values of fields that are not supported, with which they change nothing."""
    ignored: ClassVar[tuple[str, ...]] = ()
    """Fields that change no answer, whatever their value."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            raise Refused("must be an object")
        return {name: value for name, value in given.items() if value is not None}

    @model_validator(mode="after")
    def _refuse_others(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            usual = self.neutral.get(name, ())
            if name in self.ignored or any(_same(value, each) for each in usual):
                continue
            if name in self.neutral:
                only = " or ".join(map(json.dumps, usual))
                hint = f"; leave it out, or give {only}" if only else "; leave it out"
                raise Refused(f"is not supported{hint}", "unsupported_parameter", field=name)
            known, short = (*type(self).model_fields, *self.neutral, *self.ignored), name[:LONGEST]
            reason = f"is unknown; nearest: {nearest(short, known)}"
            raise Refused(reason, "unknown_parameter", field=short)
        return self


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal: 1 is 1.0, but not true."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


class StreamOptions(_Object):
    """How a stream ends: with the counts of tokens, or without."""

    ignored = ("include_obfuscation",)
    include_usage: Flag = False


class Message(_Object):
    """A turn of a conversation."""

    neutral = {"tool_calls": ([],), "refusal": (), "audio": (), "function_call": ()}
    role: Annotated[
        StrictStr,
        Field(pattern=f"^({'|'.join(ROLES)})$"),
        must(f"be one of {', '.join(ROLES)}"),
        Required,
    ] = ""
    content: Annotated[str | None, PlainValidator(_content), Required] = None
    name: Annotated[StrictStr, must("be a text")] = ""

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        named = {"name": self.name} if self.name else {}
        return {"role": self.role, "content": self.content} | named


class _Generation(_Object):
    """What a request of texts asks for, whatever they continue."""

    neutral = NEUTRAL
    ignored = IGNORED
    usual_tokens: ClassVar[int | None] = None
    """The limit of a text that the request does not limit, if there is room; None: no limit."""
    model: Model = ""
    stream: Flag = False
    stream_options: StreamOptions = StreamOptions()
    top_p: Annotated[StrictFloat, Field(ge=0, le=1), must("be a number from 0 to 1")] = 1.0
    seed: Annotated[
        StrictInt | None,
        Field(ge=-(2**63), le=LARGEST),
        BeforeValidator(_integral),
        must(f"be a whole number from {-(2**63)} to {LARGEST}"),
    ] = None
    """None: each text has one of its own."""
    temperature: Annotated[StrictFloat, Field(ge=0, le=2), must("be a number from 0 to 2")] = 1.0
    top_k: Annotated[
        StrictInt,
        Field(ge=0, lt=2**31),
        BeforeValidator(_integral),
        must(f"be a whole number from 0 to {2**31 - 1}"),
    ] = 0
    """0: all tokens."""
    stop: Annotated[
        list[Annotated[StrictStr, Field(min_length=1)]],
        Field(max_length=STOPS, fail_fast=True),
        BeforeValidator(_stops),
        must(f"be a text or a list of at most {STOPS}, none empty"),
    ] = []
    stop_token_ids: Annotated[
        list[Annotated[StrictInt, Field(ge=0, lt=2**31)]],
        Field(max_length=STOP_TOKENS, fail_fast=True),
        must(f"be a list of at most {STOP_TOKENS} whole numbers from 0 to {2**31 - 1}"),
    ] = []
    ignore_eos: Flag = False
    max_tokens: MaxTokens = None

    @property
    def limit(self) -> int | None:
        """The most tokens that may follow; None if the request does not say."""
        return self.max_tokens

    @model_validator(mode="after")
    def _refuse_what_cannot_be(self) -> Self:
        if self.stream_options.include_usage and not self.stream:
            raise Refused("is of streams: it needs 'stream': true", field="stream_options")
        if self.top_p == 0:
            reason = "must be above 0; a temperature of 0 takes the likeliest token"
            raise Refused(reason, field="top_p")
        return self


class CompletionRequest(_Generation):
    """A request of /v1/completions; 16 tokens are usual, as at OpenAI."""

    usual_tokens = 16
    prompt: Annotated[list[Prompt], PlainValidator(_prompts), Required] = []


class ChatRequest(_Generation):
    """A request of /v1/chat/completions."""

    messages: Annotated[list[Message], BeforeValidator(_messages), Required] = []
    max_completion_tokens: MaxTokens = None

    @property
    def limit(self) -> int | None:
        new = self.max_completion_tokens
        return self.max_tokens if new is None else new

    @model_validator(mode="after")
    def _refuse_two_limits(self) -> Self:
        if self.max_tokens not in (None, self.limit):
            reason = "and 'max_completion_tokens' differ: give one"
            raise Refused(reason, field="max_tokens")
        return self


GenerationRequest = CompletionRequest | ChatRequest


class ClassifyRequest(_Object):
    """A request of /v1/classify."""

    ignored = ("user",)
    model: Model = ""
    input: Annotated[
        list[TextOrPair],
        must("have texts, or pairs of texts"),
        BeforeValidator(_inputs),
        Required,
    ] = []


R = TypeVar("R", bound=_Object)


def read(kind: type[R], content: dict[str, Any]) -> R:
    """A request from its JSON object.

    Raises:
      ApiError: 400, which names a field that is wrong or not supported.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    why = first.get("ctx", {})["error"]
    steps = (f"[{x}]" if isinstance(x, int) else f".{x}" for x in (*first["loc"], *why.fields))
    path = "".join(steps).removeprefix(".")
    raise ApiError(400, f"'{path}{why.part}' {why.reason}", param=path, code=why.code)


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a request's body.

    Raises:
      ApiError: 400, if it is none, or a text in it has half of a surrogate pair, which is not text.
    """
    try:
        content = json_text.loads(body, "the body")
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        message = "the body has a text with half of a surrogate pair, which is not text"
        raise ApiError(400, message, code="invalid_json") from None
    except ValueError as error:
        raise ApiError(400, str(error), code="invalid_json") from None
    if not isinstance(content, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return content
