"""adapter_config.json: the settings of all modules in one, and what it means for one module."""

import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

from lora_jax.interchange.peft_patterns import Pattern, compile_, quick
from lora_jax.peft_format import Settings, told_apart

PATTERNS = {
    "r": "rank_pattern",
    "lora_alpha": "alpha_pattern",
    "alpha": "alpha_pattern",
    "block_size": "block_size_pattern",
    "n_frequency": "n_frequency_pattern",
    "delora_lambda": "lambda_pattern",
}
"""Fields that may differ between modules where the config has the other field, too."""

VARYING = {
    "LORA": ("r", "lora_alpha"),
    "LOHA": ("r", "alpha"),
    "LOKR": ("r", "alpha"),
    "DELORA": ("r", "delora_lambda"),
    "C3A": ("block_size",),
    "FOURIERFT": ("n_frequency",),
}
"""The fields of PEFT's methods that patterns act on.

PEFT ignores others, such as those that AdaLoRA's config inherits, and HiRA's `rank_pattern`.
"""

NAMING = (
    *("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"),
    *("feedforward_modules", "target_parameters"),
)
"""Fields that are a list of names, or one name or pattern."""

Compiled = Mapping[str, Pattern]
"""The patterns of a config, by the name of the field."""

BY_WHOLE_NAME = ("block_size_pattern", "n_frequency_pattern")
"""Where PEFT looks for `.*\\.{key}$` in a module's name, and else for the name itself as a key."""

LONGEST_TARGET = 10_000
"""Of a pattern that is not matched: those that programs write are long."""


def check(config: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the fields that name modules have the types of PEFT's."""
    if not isinstance(config.get("peft_type"), str):
        raise ValueError("no peft_type: not the config of an adapter")
    for field in sorted(set(PATTERNS.values())):
        pattern = config.get(field)
        known = pattern is None or isinstance(pattern, dict)
        values = pattern.values() if isinstance(pattern, dict) else ()
        if not known or not all(_is_number(x) or _are(bool, x) for x in values):
            raise ValueError(f"{field} must map modules to numbers, got {reprlib.repr(pattern)}")
    for field in NAMING:
        names = config.get(field)
        if names is not None and not isinstance(names, str) and not _are(str, names):
            raise ValueError(f"{field} must be names, got {reprlib.repr(names)}")
    if isinstance(target := config.get("target_modules"), str):
        _check_pattern(target)
    layers = config.get("layers_to_transform")
    if layers is not None and not _are(int, layers if isinstance(layers, list) else [layers]):
        raise ValueError(f"layers_to_transform must be whole numbers, got {reprlib.repr(layers)}")
    bias = config.get("bias")
    if bias is not None and not (isinstance(bias, str) and re.fullmatch("none|all|.*_only", bias)):
        raise ValueError(
            f"bias must be 'none', 'all', or such as 'lora_only', got {reprlib.repr(bias)}"
        )


def _check_pattern(text: str) -> None:
    """Raise a ValueError unless a text may be a regular expression; it is not matched."""
    try:
        if len(text) > LONGEST_TARGET:
            raise ValueError(
                f"it has {len(text):,} characters, at most {LONGEST_TARGET:,} are read"
            )
        re.compile(text)
    except (re.error, OverflowError, RecursionError, ValueError) as error:
        raise ValueError(f"target_modules={reprlib.repr(text)} is no pattern: {error}") from None


def _are(kind: type, x: Any) -> bool:
    return isinstance(x, list) and all(type(each) is kind for each in x)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def joined(each: Mapping[str, Settings]) -> dict[str, Any]:
    """One config from the settings of every module.

    The most frequent value of a field is everybody's; a pattern gives other modules theirs. Lists
    and mappings are joined, with the module's name for `{module}`.

    Raises:
      ValueError: modules differ in a field for which there is no pattern, or in a list without
        `{module}`.
    """
    names = dict.fromkeys(name for settings in each.values() for name in settings)
    columns = {n: {m: settings.get(n) for m, settings in each.items()} for n in names}
    lists = {n for n, x in columns.items() if any(isinstance(v, dict | list) for v in x.values())}
    found = {name: _united(name, columns[name]) for name in names if name in lists}
    for name in (name for name in names if name not in lists):
        values = list(columns[name].values())
        common = max(values, key=values.count)
        others = {module: x for module, x in columns[name].items() if x != common}
        pattern = PATTERNS.get(name, "")
        if others and pattern not in found:
            (other, differs), *_ = others.items()
            usual = next(module for module, x in columns[name].items() if x == common)
            one, another = told_apart(common, differs)
            raise ValueError(
                f"PEFT has one {name} for all modules; '{usual}' has {one} and '{other}' "
                f"{another}; merge the weights instead"
            )
        found[name] = common
        if others:
            if pattern in BY_WHOLE_NAME:
                _check_ends(name, others, columns[name])
            else:
                # PEFT takes the first key that is the end of a module's name, and sorts the keys
                # when it writes: a key that is also the end of another's name is anchored.
                ends = {end for module in columns[name] for end in _ends(module)}
                others = {f"{'^' * (m in ends)}{re.escape(m)}": x for m, x in others.items()}
            found[pattern] = {**found[pattern], **others}
    return found


def _ends(module: str) -> Iterator[str]:
    """What follows each dot of a name."""
    while "." in module:
        module = module.partition(".")[2]
        yield module


def _check_ends(name: str, own: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raise a ValueError if PEFT takes a key for the end of another module's name."""
    for key, x in own.items():
        ends = re.compile(rf".*\.{key}$")
        if wrong := next((m for m, mine in values.items() if mine != x and ends.match(m)), None):
            raise ValueError(
                f"PEFT gives '{wrong}' the {name} of '{key}', too, for it ends in '{key}'; "
                "merge the weights instead"
            )


def _united(name: str, values: Mapping[str, Any]) -> Any:
    kinds = {type(value) for value in values.values() if value is not None}
    if kinds == {list}:
        texts = [(m, x) for m, each in values.items() for x in each or ()]
        named = any("{module}" in x for _, x in texts if isinstance(x, str))
        (usual, first), *others = values.items()
        if differs := next(((m, x) for m, x in others if x != first and not named), None):
            other, x = differs
            raise ValueError(
                f"PEFT has one {name} for all modules; '{usual}' has {first!r} and '{other}' {x!r}"
            )
        filled = [x.format(module=m) if isinstance(x, str) else x for m, x in texts]
        return list(dict.fromkeys(filled))
    return {
        key.format(module=module): x
        for module, each in values.items()
        for key, x in (each or {}).items()
    }


def compiled(config: Settings) -> Compiled:
    """The patterns of a config, for `of_module` of many modules.

    Raises:
      ValueError: a key is no regular expression, or may take too long.
    """
    found = {}
    for name in PATTERNS.values():
        entries = {key: x for key, x in (config.get(name) or {}).items() if not isinstance(x, list)}
        found[name] = Pattern(entries, after_dot=name in BY_WHOLE_NAME)
    return found


def of_module(config: Settings, module: str, patterns: Compiled) -> dict[str, Any]:
    """What a config says of one module: patterns are resolved, and lists tell of this one alone.

    Args:
      patterns: those of the config, `compiled`.
    """
    found = dict(config)
    parameter = f"{module}.weight"
    target = parameter if selects(config.get("target_parameters") or [], parameter) else module
    for name in VARYING.get(config["peft_type"], ()):
        if (value := patterns[PATTERNS[name]].find(target)) is not None:
            found[name] = value
    if isinstance(config.get("rank_pattern"), dict):  # AdaLoRA's: which rows are left
        names, rows = (f"{module}.lora_E", f"{module}.lora_E.default"), config["rank_pattern"]
        found["rank_pattern"] = next((rows[name] for name in names if name in rows), None)
    if config.get("feedforward_modules"):
        found["feedforward_modules"] = selects(config["feedforward_modules"], module)
    return found


def of_tokens(config: Settings, module: str) -> dict[str, Any]:
    """What a config says of a module whose tokens train beside adapters of others.

    Raises:
      ValueError: it names no tokens of the module.
    """
    tokens = config.get("trainable_token_indices")
    if isinstance(tokens, dict):
        tokens = next((each for name, each in tokens.items() if selects([name], module)), None)
    if not isinstance(tokens, list):
        raise ValueError(f"trainable_token_indices has no list of tokens for '{module}'")
    return {"peft_type": "TRAINABLE_TOKENS", "token_indices": tokens}


def selects(target: Any, module: str) -> bool:
    """Whether a list of names, or a regular expression, selects a module (PEFT's rule)."""
    if isinstance(target, str):
        return compile_(quick(target)).fullmatch(module) is not None
    return any(module == name or module.endswith(f".{name}") for name in target)
