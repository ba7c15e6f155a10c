"""Chat templates that are published with decoders, rendered as in transformers.

A template is a Jinja program that turns messages into the text format of the model's training. It
runs in Jinja's sandbox, with the additions of transformers (`raise_exception`, `strftime_now`, a
`tojson` that does not escape letters, `break` and `continue`, blocks marked `generation`).

    template = load_chat_template(locate("smollm2"))
    prompt, completion = prompt_and_completion(template, messages)
    ids = tokenizer.backend.encode(prompt, add_special_tokens=False).ids

The template itself writes a begin token such as <s>, so the tokenizer must add no special tokens.
"""

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_jax.data.tokenizing.vocabulary_files import read_settings, special_tokens
from lora_jax.files.gguf_file import SPECIAL_TOKENS, GgufFile
from lora_jax.messages import first_line, naming
from lora_jax.models.published.weight_files import find_gguf

Message = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template's source, and the special tokens that it may use, such as `bos_token: "<s>"`.

    Raises a one-line ValueError if it is not a Jinja program; `origin` names its source there.
    `now` is what the template takes for the time; None is the clock's.
    """

    source: str
    tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    origin: str = "chat template"
    now: datetime.datetime | None = None
    _compiled: Any = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "_compiled", _compile(self.source, self.origin, self.now))

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, **variables: Any
    ) -> str:
        """The text of a conversation.

        Args:
            messages: dicts with a `role` and usually a `content`. As in transformers, a value of
                None counts as missing, and reasoning may be called `reasoning_content`, `thinking`
                or `reasoning`.
            add_generation_prompt: end the text with the start of an assistant's answer, if the
                template supports it.
            variables: other variables of the template, such as `tools` and `enable_thinking`. Some
                templates write today's date unless `date_string` gives another.

        Raises:
            ValueError: the template refuses the messages or cannot render them (one line).
        """
        _check(messages)
        given = {"tools": None, "documents": None, **self.tokens, **variables}
        given |= {"messages": [_named_reasoning(message) for message in messages]}
        try:
            # A template is untrusted: it gets data only, never objects with methods.
            plain = json.loads(json.dumps(given))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{self.origin}: what is rendered must be plain data: {error}"
            ) from None
        try:
            return self._compiled.render(add_generation_prompt=add_generation_prompt, **plain)
        except Exception as error:  # raised by the template, or by its use of the messages
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{self.origin}: cannot render these messages: {reason}") from None


def load_chat_template(path: str | Path) -> ChatTemplate:
    """Load the template of a folder or a GGUF file, with its special tokens.

    It is read from `chat_template.jinja`, else from `chat_template` in tokenizer_config.json, else
    from the metadata of the GGUF file. If several are published, it is the one called `default`.
    FileNotFoundError if there is none; ValueError if it is not a template.
    """
    file, source = Path(path) / "chat_template.jinja", None
    settings = read_settings(Path(path) / "tokenizer_config.json")
    tokens = special_tokens(settings)
    if file.is_file():
        with naming(f"{file} is not UTF-8", UnicodeDecodeError):
            source = file.read_text(encoding="utf-8")
    elif "chat_template" in settings:
        file = Path(path) / "tokenizer_config.json"
        source = _default(settings["chat_template"], file)
    elif (gguf := find_gguf(path)) is not None:
        file, (source, tokens) = gguf, _from_gguf(GgufFile(gguf))
    if source is None:
        raise FileNotFoundError(
            f"{path}: no chat template: neither chat_template.jinja, nor chat_template in "
            "tokenizer_config.json, nor a GGUF file with one"
        )
    return ChatTemplate(source, tokens, str(file))


def prompt_and_completion(
    template: ChatTemplate, messages: Sequence[Message], **variables: Any
) -> tuple[str, str]:
    """A conversation's text, split where the final answer begins.

    The prompt is what the model is given. The completion is what it should say, with the end of its
    turn. Joined, they are `template.render(messages)`.

    ValueError if the last message is not the assistant's, or if the template renders the earlier
    messages differently when the answer follows.
    """
    _check(messages)
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"the last message must be the assistant's, not {messages[-1]['role']!r}")
    whole = template.render(messages, **variables)
    prompt = template.render(messages[:-1], add_generation_prompt=True, **variables)
    if not whole.startswith(prompt):
        same = next(i for i, (a, b) in enumerate(zip(prompt, whole + "\0", strict=False)) if a != b)
        raise ValueError(
            f"{template.origin}: the text with the answer does not begin with the prompt for it: "
            f"{whole[same : same + 20]!r} in place of {prompt[same : same + 20]!r}"
        )
    return prompt, whole[len(prompt) :]


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise ValueError("a conversation needs a message")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"a message must be a dict with a role, got {message!r}")


def _named_reasoning(message: Message) -> dict[str, Any]:
    """A message without None values, its reasoning under the names that templates look for."""
    present = {key: value for key, value in message.items() if value is not None}
    for name in ("reasoning_content", "thinking", "reasoning"):
        if name in present:
            return {"thinking": present[name], **present, "reasoning_content": present[name]}
    return present


def _default(published: Any, file: Path) -> str:
    """The only template, or the one called `default` of a list with names."""
    if isinstance(published, list):
        with contextlib.suppress(TypeError, KeyError):
            named = {str(each["name"]): each["template"] for each in published}
            published = named.get("default")
    if not isinstance(published, str):
        raise ValueError(f"{file}: chat_template must be text, or a list with names and a default")
    return published


def _from_gguf(file: GgufFile) -> tuple[str | None, dict[str, str]]:
    words = file.value("tokenizer.ggml.tokens", [])
    ids = {k: file.value(f"tokenizer.ggml.{v}_token_id", None) for k, v in SPECIAL_TOKENS.items()}
    tokens = {
        f"{k}_token": words[i] for k, i in ids.items() if i is not None and 0 <= i < len(words)
    }
    return file.value("tokenizer.chat_template", None), tokens


def _compile(source: str, origin: str, now: datetime.datetime | None) -> Any:
    try:
        from jinja2 import TemplateError, TemplateSyntaxError, nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise ValueError(
            f"{origin}: chat templates need a package that is not installed; "
            'run: pip install "lora-jax[decoders]"'
        ) from None

    class Generation(Extension):
        """`{% generation %}`, by which some templates mark the assistant's words."""

        tags = {"generation"}  # noqa: RUF012  Jinja's interface

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    clock = datetime.datetime.now if now is None else lambda: now
    environment.globals["strftime_now"] = lambda form: clock().strftime(form)
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise ValueError(f"{origin}: not a chat template: line {error.lineno}: {error}") from None
    except Exception as error:  # from the Python code that Jinja makes: too deep, too long a number
        raise ValueError(f"{origin}: not a chat template: {first_line(error)}") from None
