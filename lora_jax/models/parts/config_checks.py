"""The settings of a published config.json, read and checked.

A family's config is a dataclass, each of whose fields states its default and its check together:

    hidden_size: int = integer(768)
    hidden_dropout_prob: float = rate(0.1)
"""

import dataclasses
import functools
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from lora_jax.files.gguf_file import GgufFile
from lora_jax.models.parts.modules import ACTIVATIONS

MOST_LAYERS = 10_000
"""Far more than any model has. It limits lists of layers, which are made before weights load."""
MOST = 2**31 - 1
"""The limit of any other size: no axis of an array and no token id is larger."""
_LEAST_EPSILON, _MOST_EPSILON = 1e-30, 0.1  # float32 holds the least; more than 0.1 is a mistake
_REFUSED: Any = object()  # stands for "null is an error"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_heads(hidden_size: int, num_attention_heads: int) -> None:
    if hidden_size % num_attention_heads:
        raise ValueError(
            f"hidden_size {hidden_size} is not a multiple of "
            f"num_attention_heads {num_attention_heads}"
        )


def check_choice(name: str, value: Any, choices: Any) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} {shown(value)} is not supported; supported: {', '.join(choices)}")


def check_rate(name: str, value: Any) -> None:
    """Check a dropout rate."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {shown(value)}")


def check_positive(name: str, value: Any) -> None:
    """Check a positive number that float32 holds as neither zero nor infinity."""
    if not _is_number(value) or not value > 0:
        raise ValueError(f"{name} must be a positive number, got {shown(value)}")
    if not 1e-37 < value < 1e38:
        raise ValueError(f"{name} must be a number that float32 holds, got {shown(value)}")


def check_epsilon(name: str, value: Any) -> None:
    """Check the number that a norm adds to a variance before dividing by its root."""
    check_positive(name, value)
    if not _LEAST_EPSILON <= value <= _MOST_EPSILON:
        raise ValueError(
            f"{name} must be from {_LEAST_EPSILON} to {_MOST_EPSILON}, got {shown(value)}"
        )


def check_integer(name: str, value: Any, least: int, most: int = MOST) -> None:
    if not isinstance(value, int) or not _is_number(value) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {shown(value)}")
    if value > most:
        raise ValueError(f"{name} must be an integer <= {most:,}, got {shown(value)}")


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {shown(value)}")


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """Check one token id, several or None (null), and return them as a tuple."""
    ids = tuple(value) if isinstance(value, list | tuple) else () if value is None else (value,)
    for each in ids:
        check_integer(name, each, least=0)
    return ids


def shown(value: Any) -> str:
    """A value for an error message, shortened: a file may hold a value of any length."""
    return reprlib.repr(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def setting(
    default: Any,
    check: Callable[[str, Any], object],
    *,
    read: Callable[[str, Any], Any] | None = None,
    null: Any = _REFUSED,
) -> Any:
    """A field of a config that a config.json may set.

    Args:
      check: raises a ValueError for a name and a value that the setting cannot have.
      read: makes the value from a name and the content of a config.json.
      null: the meaning of null there; by default, null is an error. If it is None, the setting may
        be None.
    """
    stated = {"check": check, "read": read, "null": null}
    return dataclasses.field(default=default, metadata=stated)


def integer(default: int | None, least: int = 1, most: int = MOST, **more: Any) -> Any:
    return setting(default, functools.partial(check_integer, least=least, most=most), **more)


def words(choices: Sequence[str], read: Callable[[str, Any], Any]) -> Any:
    """The field of any number of words."""

    def check(name: str, value: Sequence[str]) -> None:
        for each in value:
            check_choice(name, each, choices)

    return setting((), check, read=read, null=())


layer_count = functools.partial(integer, most=MOST_LAYERS)
token = functools.partial(integer, least=0, null=None)
"""The field of one token id, or None."""
tokens = functools.partial(setting, check=token_ids, read=token_ids, null=())
"""The field of any number of token ids."""
rate = functools.partial(setting, check=check_rate)
"""The field of a dropout rate."""
positive = functools.partial(setting, check=check_positive)
epsilon = functools.partial(setting, check=check_epsilon)
flag = functools.partial(setting, check=check_flag)
activation = functools.partial(setting, check=functools.partial(check_choice, choices=ACTIVATIONS))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The settings of a model, by the names and with the defaults of transformers.

    A family's config derives from `EncoderConfig` or `DecoderConfig`, and gives `model_type` a
    default, which is the only value that it may have.
    """

    model_type: str
    vocab_size: int

    refused: ClassVar[tuple[str, ...]]
    """Features that no model of this kind has."""
    kind: ClassVar[Literal["encoder", "decoder"]]

    def __post_init__(self):
        self._check_type(self.model_type)
        for field in dataclasses.fields(self):
            value, stated = getattr(self, field.name), field.metadata
            if stated and not (value is None and stated["null"] is None):
                stated["check"](field.name, value)

    @classmethod
    def own_type(cls) -> str:
        """The only `model_type`: the family's name in a config.json."""
        (found,) = (f.default for f in dataclasses.fields(cls) if f.name == "model_type")
        return str(found)

    @classmethod
    def _check_type(cls, model_type: Any) -> None:
        if model_type != cls.own_type():
            raise ValueError(
                f"model_type {shown(model_type)} is not supported; supported: {cls.own_type()}"
            )

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Read the content of a published config.json.

        ValueError for another architecture, and for a feature that this model lacks, such as cross
        attention, pruned heads, or quantised weights.
        """
        cls._check_type(config.get("model_type"))
        for feature in (*cls.refused, "add_cross_attention", "pruned_heads", "quantization_config"):
            if config.get(feature):
                raise ValueError(
                    f"{feature}={shown(config[feature])} is not supported: plain {cls.kind}s only"
                )
        fields = {f.name: f.metadata for f in dataclasses.fields(cls) if f.metadata}
        given = {name: value for name, value in config.items() if name in fields}
        for name, value in given.items():
            stated = fields[name]
            if value is None and stated["null"] is _REFUSED:
                raise ValueError(
                    f"{name} is null: give it a value, or leave it out for the default"
                )
            value = stated["null"] if value is None else value
            given[name] = value if stated["read"] is None else stated["read"](name, value)
        own = cls(**given)
        own.check_known_tokens(name for name in _TOKENS if name in given)
        return own

    def check_known_tokens(self, names: Iterable[str] = _TOKENS) -> None:
        """Raise a ValueError for a special token's id that is outside the vocabulary."""
        for name in names:
            ids = token_ids(name, getattr(self, name))
            if beyond := [each for each in ids if each >= self.vocab_size]:
                raise ValueError(
                    f"{name} {beyond[0]} is not in the vocabulary, whose vocab_size is "
                    f"{self.vocab_size}"
                )

    def to_json(self) -> dict[str, Any]:
        """This config as the content of a config.json."""
        return dataclasses.asdict(self)

    def settle(self, name: str, value: Any) -> None:
        """Set a field whose default follows from other fields, while the config is made."""
        object.__setattr__(self, name, value)


class EncoderConfig(ModelConfig):
    """The settings of an encoder.

    It also has `max_tokens`, `head_dropout` (the rate before the classifier) and
    `with_head_dropout`.
    """

    refused = ("is_decoder",)
    kind = "encoder"


class DecoderConfig(ModelConfig):
    """The settings of a decoder.

    It also has `hidden_size`, `num_hidden_layers`, `num_key_value_heads`, `head_dim`, `max_tokens`,
    `sliding_window`, and `slides`: whether each layer sees only a window. `from_gguf` reads the
    metadata of a GGUF file, for families that such files hold; it raises a ValueError for a feature
    that this decoder lacks, and for a number that is missing.
    """

    refused = ("is_encoder_decoder",)
    kind = "decoder"

    def to_json(self) -> dict[str, Any]:
        content = dataclasses.asdict(self)
        eos = list(content["eos_token_id"])
        return {**content, "eos_token_id": eos[0] if len(eos) == 1 else eos or None}

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
