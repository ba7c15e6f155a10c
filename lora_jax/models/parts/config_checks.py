"""The settings of a published config.json, read and checked.

A family's config is a dataclass, each of whose fields states its default and its check together:

    hidden_size: int = integer(768)
    hidden_dropout_prob: float = rate(0.1)
"""

import dataclasses
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar, Literal, Self

from lora_jax.files.gguf_file import GgufFile
from lora_jax.models.parts.modules import ACTIVATIONS

MOST_LAYERS = 10_000
"""Far more than any model has. It limits lists of layers, which are made before weights load."""
MOST = 2**31 - 1
"""The limit of any other size: no axis of an array and no token id is larger."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def require(name: str, value: Any, valid: bool, must: str) -> None:
    """Raise a ValueError unless a setting's value is valid; `must` says what it must be."""
    if not valid:
        raise ValueError(f"{name} must be {must}, got {shown(value)}")


def setting(
    default: Any,
    valid: Callable[[Any], bool],
    must: str,
    *,
    read: Callable[[Any], Any] = lambda value: value,
    null: Any = None,
) -> Any:
    """A field of a config that a config.json may set.

    Args:
      valid: whether the setting can have a value.
      must: what it must be, for messages.
      read: makes the value from the content of a config.json; what it cannot read stays as it is.
      null: the meaning of null there.
    """
    stated = {"valid": valid, "must": must, "read": read, "null": null}
    return dataclasses.field(default=default, metadata=stated)


def integer(default: int, least: int = 1, most: int = MOST, **more: Any) -> Any:
    def valid(value: Any) -> bool:
        return is_integer(value, least, most)

    return setting(default, valid, _bounds(least, most), **more)


def number(default: float | None, least: float, most: float, must: str) -> Any:
    """The field of a number; if its default is None, it may be None."""

    def valid(value: Any) -> bool:
        return value is default is None or (is_number(value) and least <= value <= most)

    return setting(default, valid, must)


def rate(default: float | None) -> Any:
    """The field of a dropout rate."""
    return number(default, 0, 1 - 1e-9, "a number in [0, 1)")


def positive(default: float) -> Any:
    return number(default, 1e-37, 1e38, "a positive number that float32 holds")


def epsilon(default: float) -> Any:
    """The field of a number that a norm adds to a variance; more than 0.1 is a mistake."""
    return number(default, 1e-30, 0.1, "a number from 1e-30 to 0.1")


def flag(default: bool) -> Any:
    return setting(default, lambda value: isinstance(value, bool), "true or false")


def choice(default: str, choices: Collection[str]) -> Any:
    must = f"one of {', '.join(choices)}"
    return setting(default, lambda value: isinstance(value, str) and value in choices, must)


def activation(default: str) -> Any:
    return choice(default, ACTIVATIONS)


def token(default: int | None) -> Any:
    """The field of one token id, or None."""
    return setting(default, lambda value: value is None or is_integer(value, 0), "a token id")


def tokens(default: tuple[int, ...]) -> Any:
    """The field of any number of token ids."""

    def valid(value: Any) -> bool:
        return all(is_integer(each, 0) for each in value)

    return setting(default, valid, "token ids", read=_listed, null=())


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The settings of a model, by the names and with the defaults of transformers.

    A family's config derives from `EncoderConfig` or `DecoderConfig`, and gives `model_type` a
    default, which is the only value that it may have.
    """

    model_type: str
    vocab_size: int

    only: ClassVar[Mapping[str, Any]] = {
        "add_cross_attention": False,
        "pruned_heads": False,
        "quantization_config": None,
    }
    """Features that our models lack, with the only value that each may have."""
    kind: ClassVar[Literal["encoder", "decoder"]]

    def __post_init__(self):
        own = type(self).model_type
        require("model_type", self.model_type, self.model_type == own, own)
        for field in dataclasses.fields(self):
            if field.metadata:
                value = getattr(self, field.name)
                require(field.name, value, field.metadata["valid"](value), field.metadata["must"])

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Read the content of a published config.json.

        ValueError for another architecture, and for a feature that this model lacks, such as cross
        attention, pruned heads, or quantised weights.
        """
        for feature, only in cls.only.items():
            value = config.get(feature)
            if value not in (None, only) and (value or only):
                raise ValueError(f"{feature} {shown(value)} is not supported, only {only}")
        given = {}
        for field in dataclasses.fields(cls):
            if field.metadata and field.name in config:
                value, stated = config[field.name], field.metadata
                given[field.name] = stated["null"] if value is None else stated["read"](value)
        own = cls(model_type=config.get("model_type"), **given)  # type: ignore[arg-type]
        own.check_known_tokens(name for name in _TOKENS if name in given)
        return own

    def check_known_tokens(self, names: Iterable[str] = _TOKENS) -> None:
        """Raise a ValueError for a special token's id that is outside the vocabulary."""
        for name in names:
            for each in token_ids(name, getattr(self, name)):
                known = f"in the vocabulary, whose vocab_size is {self.vocab_size}"
                require(name, each, each < self.vocab_size, known)

    def to_json(self) -> dict[str, Any]:
        """This config as the content of a config.json."""
        return dataclasses.asdict(self)

    def settle(self, name: str, value: Any) -> None:
        """Set a field whose default follows from other fields, while the config is made."""
        object.__setattr__(self, name, value)

    def check_multiple(self, name: str, of: str) -> None:
        """Raise a ValueError unless a size is a multiple of another one."""
        value, other = getattr(self, name), getattr(self, of)
        require(name, value, value % other == 0, f"a multiple of {of} {other}")


class EncoderConfig(ModelConfig):
    """The settings of an encoder; it also has `max_tokens`."""

    hidden_dropout_prob: float
    only = {**ModelConfig.only, "is_decoder": False}  # noqa: RUF012  no instance changes it
    kind = "encoder"
    head_rate: ClassVar[str] = "classifier_dropout"
    """The name of the dropout rate before the classifier."""

    @property
    def head_dropout(self) -> float:
        """The dropout rate before the classifier: its own if the config has one, else hidden's."""
        own = getattr(self, self.head_rate)
        return self.hidden_dropout_prob if own is None else own

    def with_head_dropout(self, rate: float) -> Self:
        return dataclasses.replace(self, **{self.head_rate: rate})


class DecoderConfig(ModelConfig):
    """The settings of a decoder.

    It also has `hidden_size`, `num_hidden_layers`, `num_key_value_heads`, `head_dim`, `max_tokens`,
    `sliding_window`, and `slides`: whether each layer sees only a window.
    """

    only = {**ModelConfig.only, "is_encoder_decoder": False}  # noqa: RUF012
    kind = "decoder"

    def to_json(self) -> dict[str, Any]:
        content = dataclasses.asdict(self)
        eos = list(content["eos_token_id"])
        return {**content, "eos_token_id": eos[0] if len(eos) == 1 else eos or None}

    @classmethod
    def from_gguf(cls, file: GgufFile) -> Self:
        """Read the metadata of a GGUF file, for families that such files hold.

        ValueError for a feature that this decoder lacks, and for a number that is missing.
        """
        raise NotImplementedError

    @staticmethod
    def words_of_gguf(file: GgufFile) -> dict[str, Any]:
        """The vocabulary of a GGUF file, and the tokens that begin, end and pad texts."""
        words = file.value(f"{file.value('general.architecture')}.vocab_size", 0)
        if not words and "token_embd.weight" in file:
            words = file.shape("token_embd.weight")[0]
        ends = (file.value(f"tokenizer.ggml.{name}_token_id", None) for name in ("eos", "eot"))
        return {
            "vocab_size": words,
            "tie_word_embeddings": "output.weight" not in file,
            "bos_token_id": file.value("tokenizer.ggml.bos_token_id", None),
            "eos_token_id": tuple(dict.fromkeys(each for each in ends if each is not None)),
            "pad_token_id": file.value("tokenizer.ggml.padding_token_id", None),
        }


def check_integer(name: str, value: Any, least: int, most: int = MOST) -> None:
    require(name, value, is_integer(value, least, most), _bounds(least, most))


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """Check one token id, several or None (null), and return them as a tuple."""
    ids = () if value is None else _listed(value)
    for each in ids:
        check_integer(name, each, least=0)
    return ids


def _bounds(least: int, most: int) -> str:
    return f"an integer >= {least}" if most == MOST else f"an integer from {least} to {most:,}"


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def shown(value: Any) -> str:
    """A value for an error message, shortened: a file may hold a value of any length."""
    return reprlib.repr(value)


def is_integer(value: Any, least: int, most: int = MOST) -> bool:
    return isinstance(value, int) and is_number(value) and least <= value <= most


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
