"""adapter_config.json: the settings of all modules in one, and what it means for one module.

`joined` makes one config of the settings of every module, and `of_module` takes them apart again:
`Pattern` is a field such as `rank_pattern`, and `refusal_of` says which modules PEFT adapts.
"""

import math
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lora_jax.messages import naming
from lora_jax.peft_format import Settings, told_apart

LONGEST, MOST_CHOICES = 300, 5
"""Of a regular expression that is matched."""
MOST = 5000
"""Of the keys of one pattern, each of which is compared with the name of every module."""
MOST_WAYS = 2_000_000
"""Of matching all expressions of one pattern with one name: some tenths of a second."""
USUAL_LENGTH = 40
"""Of a module's name, in characters."""


class Pattern:
    """The entries of one pattern: regular expressions, and the values of modules that they match.

    An expression matches the end of a module's name, after a dot or from the start; the first that
    does decides (PEFT's `get_pattern_key`).

    Args:
      after_dot: as PEFT's C3A and FourierFT have it: an expression matches after a dot alone, and
        where none does, the key decides that is the whole name.

    Raises:
      ValueError: a key is not a regular expression, or they may take too long to match.
    """

    def __init__(self, entries: Mapping[str, Any], after_dot: bool = False):
        if len(entries) > MOST:
            raise ValueError(f"more than {MOST:,} keys")
        before, after = (r".*\.", "$") if after_dot else (r"(.*\.)?(", ")$")
        self._by_name = entries if after_dot else {}
        self._values: list[tuple[re.Pattern[str], Any]] = []
        ways = 0
        for key, value in entries.items():
            self._values.append((compile_(f"{before}{quick(key)}{after}"), value))
            ways += _ways(key)
            if ways > MOST_WAYS:
                raise ValueError(
                    f"the keys up to {reprlib.repr(key)} may take too long to match: use fewer "
                    "repetitions and alternatives, or the names of modules"
                )

    def find(self, module: str) -> Any:
        """The value of a module; None if no key matches its name."""
        matching = (value for each, value in self._values if each.match(module))
        return next(matching, self._by_name.get(module))


def quick(pattern: str) -> str:
    """The pattern, unless a hostile one may take `re` for ever: it tries every combination.

    Each choice multiplies the combinations; a repeated group and inline flags hide how many.

    Raises:
      ValueError: it is such a one.
    """
    bare = re.sub(r"\\.", "", pattern, flags=re.DOTALL)
    choices = len(re.findall(r"(?<!\()[*+?{]|\(", bare))
    hidden = re.search(r"\)[*+{]|\(\?[^:=!<]", bare)
    if len(pattern) > LONGEST or choices > MOST_CHOICES or hidden:
        raise ValueError(
            f"{reprlib.repr(pattern)} may take too long to match: a pattern has at most {LONGEST} "
            f"characters and {MOST_CHOICES} groups and repetitions, and repeats no group"
        )
    return pattern


def _ways(pattern: str) -> int:
    """About how many ways `re` may try of matching a `quick` expression with a usual name."""
    bare = re.sub(r"\\.", "", pattern, flags=re.DOTALL)
    repetitions = len(re.findall(r"(?<!\()[*+{]", bare))
    optional = len(re.findall(r"(?<![(*+?}])\?", bare))
    groups = bare.count("(") + 1
    alternatives = math.ceil((1 + bare.count("|") / groups) ** groups)
    return math.comb(USUAL_LENGTH + repetitions, repetitions) * 2**optional * alternatives


def compile_(pattern: str) -> re.Pattern[str]:
    """`re.compile`; a ValueError for what is no pattern."""
    wrong = f"{reprlib.repr(pattern)} is not a pattern"
    with naming(wrong, re.error, OverflowError, RecursionError):
        return re.compile(pattern)


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


def _are(kind: type, x: Any) -> bool:
    return isinstance(x, list) and all(type(each) is kind for each in x)


def _numbers_by_module(x: Any) -> bool:
    """Whether it is a mapping to numbers, or to AdaLoRA's lists of the rows that are left."""
    return isinstance(x, dict) and all(type(v) in (int, float) or _are(bool, v) for v in x.values())


CHECKS: tuple[tuple[tuple[str, ...], Callable[[Any], Any], str], ...] = (
    (tuple(sorted({*PATTERNS.values()})), _numbers_by_module, "map modules to numbers"),
    (NAMING, lambda x: isinstance(x, str) or _are(str, x), "be names"),
    (
        ("layers_to_transform",),
        lambda x: _are(int, x if isinstance(x, list) else [x]),
        "be whole numbers",
    ),
    (
        ("bias",),
        lambda x: isinstance(x, str) and re.fullmatch("none|all|.*_only", x),
        "be 'none', 'all', or such as 'lora_only'",
    ),
)
"""Fields, what holds of their values, and what to say where it does not."""


def check(config: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the fields that name modules have the types of PEFT's."""
    if not isinstance(config.get("peft_type"), str):
        raise ValueError("no peft_type: not the config of an adapter")
    for fields, holds, said in CHECKS:
        for field in fields:
            value = config.get(field)
            if value is not None and not holds(value):
                raise ValueError(f"{field} must {said}, got {reprlib.repr(value)}")
    if isinstance(target := config.get("target_modules"), str):
        if len(target) > LONGEST_TARGET:
            most = f"at most {LONGEST_TARGET:,} are read"
            raise ValueError(f"target_modules has {len(target):,} characters, {most}")
        with naming("target_modules"):  # it may be a pattern, and is not matched
            compile_(target)


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
      ValueError: a key is not a regular expression, or may take too long.
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


ALL_LINEAR = "all-linear"
"""Instead of names: all linear modules but the head."""


def refusal_of(config: Mapping[str, Any], module: str) -> str | None:
    """The field by which PEFT puts no adapter into a module; None if it puts one there.

    It is as PEFT's `check_target_module_exists` has it. A `target_modules` that is an expression is
    not compared if it may take too long to match.

    Raises:
      ValueError: another field is not an expression, or may take too long to match.
    """
    targets = config.get("target_modules")
    if selects(config.get("target_parameters") or [], f"{module}.weight"):
        return None
    if selects(config.get("exclude_modules") or [], module):
        return "exclude_modules leaves out"
    if not _is_target(targets, module):
        return "target_modules does not name"
    by_tail = not isinstance(targets, str) and module not in (targets or ())
    return "layers_to_transform leaves out" if by_tail and not _in_layers(config, module) else None


def _is_target(targets: Any, module: str) -> bool:
    if targets is None:  # PEFT has the names for some models
        return True
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        return True
    try:
        return selects(targets, module)
    except ValueError:
        return True


def _in_layers(config: Mapping[str, Any], module: str) -> bool:
    """Whether the number of a module's layer is chosen; PEFT takes the first number in its name."""
    chosen, patterns = config.get("layers_to_transform"), config.get("layers_pattern")
    if chosen is None or chosen == []:
        return True
    layers = chosen if isinstance(chosen, list) else [chosen]
    patterns = [patterns] if isinstance(patterns, str) and patterns else patterns or []
    before = [rf"(?:^|.*?\.){quick(each)}" for each in patterns] or [r".*?\.[^.]*"]
    found = (compile_(rf"{each}\.(?P<idx>\d+)\.").match(module) for each in before)
    first = next(filter(None, found), None)
    return first is not None and int(first["idx"]) in layers
