"""Which modules a config of PEFT adapts, as its `check_target_module_exists` has it."""

from collections.abc import Callable, Mapping
from typing import Any

from lora_jax.interchange.peft_config import selects
from lora_jax.interchange.peft_patterns import compile_, quick

ALL_LINEAR = "all-linear"
"""Instead of names: all linear modules but the head."""


def refusal_of(config: Mapping[str, Any]) -> Callable[[str], str | None]:
    """Why PEFT puts no adapter into a module, by its name: the field that says so; None if it does.

    A `target_modules` that is an expression is not compared if it may take too long to match.

    Raises:
      ValueError: another field is no expression, or may take too long to match.
    """
    targets, parameters = config.get("target_modules"), config.get("target_parameters") or []
    named, excluded = _targeted(targets), _excluded(config.get("exclude_modules"))
    in_layers = _in_layers(config)

    def refusal(module: str) -> str | None:
        if selects(parameters, f"{module}.weight"):
            return None
        if excluded(module):
            return "exclude_modules leaves out"
        if not named(module):
            return "target_modules does not name"
        by_tail = not isinstance(targets, str) and module not in (targets or ())
        return "layers_to_transform leaves out" if by_tail and not in_layers(module) else None

    return refusal


def _targeted(targets: Any) -> Callable[[str], bool]:
    if targets is None:  # PEFT has the names for some models
        return lambda module: True
    if not isinstance(targets, str):
        return lambda module: selects(targets, module)
    if targets.lower() == ALL_LINEAR:
        return lambda module: True
    try:
        expression = compile_(quick(targets))
    except ValueError:
        return lambda module: True
    return lambda module: expression.fullmatch(module) is not None


def _excluded(names: Any) -> Callable[[str], bool]:
    if isinstance(names, str) and names:
        expression = compile_(quick(names))
        return lambda module: expression.fullmatch(module) is not None
    return lambda module: selects(names or [], module)


def _in_layers(config: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether the number of a module's layer is chosen; PEFT takes the first number in its name."""
    chosen, patterns = config.get("layers_to_transform"), config.get("layers_pattern")
    if chosen is None or chosen == []:
        return lambda module: True
    layers = chosen if isinstance(chosen, list) else [chosen]
    patterns = [patterns] if isinstance(patterns, str) and patterns else patterns or []
    before = [rf"(?:^|.*?\.){quick(each)}" for each in patterns] or [r".*?\.[^.]*"]
    expressions = [compile_(rf"{each}\.(?P<idx>\d+)\.") for each in before]

    def chosen_layer(module: str) -> bool:
        found = next((x for each in expressions if (x := each.match(module))), None)
        return found is not None and int(found["idx"]) in layers

    return chosen_layer
