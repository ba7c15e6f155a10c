"""Which variants have code of their own, and which are others with other settings."""

import dataclasses

import variants
from lora_jax.variant import Variant


@dataclasses.dataclass(frozen=True)
class Bare(Variant):
    """What `dataclass` itself, and a setting, put into a class."""

    setting: int = 0


def has_code(kind: type[Variant]) -> bool:
    """Whether a class is more than its base with some other default values, or some refused."""
    base, fields = kind.__base__, {field.name for field in dataclasses.fields(kind)}
    plain = {"title", "suggested", "peft", "__post_init__", "validate"}
    sets = set(vars(kind)) <= set(vars(Bare)) | fields | plain
    return not sets or defaults(kind) == defaults(base)


def defaults(kind: type) -> dict[str, object]:
    return {field.name: field.default for field in dataclasses.fields(kind)}


def names() -> list[str]:
    """Of the variants with code of their own."""
    return [name for name in variants.names() if has_code(variants.find(name))]
