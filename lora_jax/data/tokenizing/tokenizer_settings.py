"""The settings of a tokenizer_config.json that tokenizers are built from, checked."""

from pathlib import Path
from typing import Any

from lora_jax.files import json_text

_FLAGS = (
    *("do_lower_case", "tokenize_chinese_chars", "strip_accents"),  # BERT's
    *("add_prefix_space", "trim_offsets", "split_by_punct"),  # RoBERTa's, DeBERTa's
    "add_bos_token",  # GPT-2's
)
_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "sep", "cls", "unk", "pad", "mask"))
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
"""The settings of an added token that is written as an object, beside its content."""


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a file, without those that are null; empty if there is no file.

    Raises a one-line ValueError that names the file and the setting for a value of a wrong type.
    """
    if not path.is_file():
        return {}
    content = json_text.read_object(path)
    settings = {name: value for name, value in content.items() if value is not None}
    for name in _FLAGS:
        if not isinstance(settings.get(name, False), bool):
            raise ValueError(f"{path}: {name} must be true or false, got {settings[name]!r}")
    for name in _TOKENS:
        if name in settings and not _is_token(settings[name]):
            raise ValueError(f"{path}: {name} is not a token: {settings[name]!r}")
    return settings


def special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """The special tokens that checked settings name, for example `eos_token: "</s>"`."""
    return {name: token_text(settings[name]) for name in _TOKENS if name in settings}


def token_text(token: str | dict[str, Any]) -> str:
    """A token's text; the token is a text, or an added token written as an object."""
    return token if isinstance(token, str) else token["content"]


def _is_token(value: Any) -> bool:
    """Whether a value is a text, or an added token as an object: its content and its flags."""
    if isinstance(value, dict):
        flags = (value.get(name, False) for name in TOKEN_FLAGS)
        return isinstance(value.get("content"), str) and all(isinstance(f, bool) for f in flags)
    return isinstance(value, str)
