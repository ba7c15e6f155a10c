"""What PEFT can have of a model at once: modules with an adapter, and modules saved whole."""

from collections.abc import Collection, Mapping
from typing import Any

from lora_jax.interchange.matrices import depth, variant_at
from lora_jax.interchange.names import Names, rows
from lora_jax.transform.placement import Frozen, Trainable

HEADS = ("classifier", "score")
"""What PEFT saves whole with SEQ_CLS."""


def with_heads(whole: set[str], known: set[str]) -> set[str]:
    """The modules to save, with a head in the place of its parts, such as RoBERTa's two layers.

    PEFT saves the head whole with SEQ_CLS, and does not know a module to save inside another one.

    Args:
      whole, known: the modules that train in full, and all with a weight.

    Raises:
      ValueError: only some parts of a head train.
    """
    for head in HEADS:
        parts = {each for each in known if each.startswith(f"{head}.")}
        if parts & whole:
            if missing := sorted(parts - whole):
                raise ValueError(
                    f"with SEQ_CLS, PEFT saves '{head}' whole, and '{missing[0]}' does not train "
                    "in full: leave task_type out"
                )
            whole = whole - parts | {head}
    return whole


def check_modules(adapted: set[str], whole: set[str], known: set[str], task: str | None) -> None:
    """PEFT also adapts what ends in the name of a module, and adapts nothing that it saves whole.

    Args:
      adapted, whole, known: the modules with an adapter, those to save, and all with a weight.

    Raises:
      ValueError: PEFT would take other modules than these.
    """
    for name in sorted(known - adapted - whole):
        if one := next((each for each in adapted if name.endswith(f".{each}")), None):
            raise ValueError(f"PEFT would adapt '{name}', too, for it ends in '{one}'")
    if task == "SEQ_CLS" and not whole & {*HEADS}:
        raise ValueError(
            "with SEQ_CLS, PEFT saves the head, and no module 'classifier' or 'score' trains in "
            "full here: leave task_type out"
        )
    saved = whole | {*HEADS} if task == "SEQ_CLS" else whole
    for name in sorted(adapted):
        if one := next((each for each in saved if f".{each}." in f".{name}."), None):
            raise ValueError(f"PEFT would not adapt '{name}', for it is in '{one}', saved whole")


def check_parts(
    trainable: Trainable, frozen: Frozen, names: Names, params: Mapping[str, Any]
) -> None:
    """Raise a ValueError if a weight trains in full, and another part of its module has an adapter.

    PEFT saves the module whole, or adapts it.
    """
    adapted = {}
    for placement in frozen.spec.adapted:
        path = placement.use.path
        for layer in range(depth(placement)):
            place = names.place(path, layer) if variant_at(placement, layer) else None
            if place is not None:
                adapted[place.name] = path
    for row in rows(names, {p: params[p] for p in trainable["params"] if p in params}):
        if other := adapted.get(row.place.name):
            raise ValueError(
                f"'{row.path}' trains in full, and '{other}' has an adapter; PEFT has both in one "
                f"module, '{row.module}': merge the weights instead"
            )


def check_wrapped(adapted: Collection[str], names: Names) -> None:
    """Raise a ValueError for an adapter that would do nothing in PEFT."""
    for module in adapted:
        if module in names.unwrapped:
            raise ValueError(
                f"an adapter of '{module}' does nothing in PEFT, whose model reads the weight past "
                "it: merge the weights instead"
            )
