"""The trials of a sweep; each is a run of `experiments.train` with its own flags and name."""

import dataclasses
import functools
import re
import runpy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags.config_path import get_type, get_value

from configs.common import UnknownArgumentError
from configs.settings import RunConfig
from experiments.setup import config_files, config_flags
from experiments.setup.config import fill, parse
from experiments.setup.config_flags import (
    all_names,
    meant,
    read_config,
    settings_of,
)
from experiments.sweeps import sweep_flag
from lora_jax.files.json_text import config_digest
from lora_jax.messages import nearest_if_close

_LONGEST = 120  # characters of a folder name; file systems allow 255 bytes with suffixes


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str
    """The folder name, unique in the sweep, such as `variant=lora,learning_rate=0.0003,seed=0`."""
    arguments: tuple[str, ...]
    """The flags of `experiments.train` for this trial, without --workdir."""
    overrides: sweep_flag.Overrides
    """The keys and values that the sweep varied, as text."""
    plain: Mapping[str, Any]
    """The config as plain data."""

    @functools.cached_property
    def config(self) -> RunConfig:
        """The config's settings; a ValueError names the first invalid one."""
        return parse(self.plain)

    @property
    def digest(self) -> str:
        return config_digest(self.plain)


def own_sweep(file: str) -> list[sweep_flag.Overrides]:
    """The trials that the `sweep()` of a config file yields, as text; one empty trial without it.

    Raises:
      ValueError: it yields something else than a dict, an invalid key or value, no trials, or too
        many.
    """
    if config_files.is_json(file):  # it is not Python
        return [{}]
    found = []
    with config_files.in_one_line([file]):
        if (function := runpy.run_path(file).get("sweep")) is None:
            return [{}]
        for each in function():
            where = f"{file}: sweep() yields {each!r}"
            if not isinstance(each, Mapping):
                raise ValueError(f"{where}: expected a dict, such as {{'config.seed': 0}}")
            for key in each:
                sweep_flag.check_key(str(key), where)
            found.append({key: sweep_flag.text_of(value) for key, value in each.items()})
            sweep_flag.check_count(len(found), f"{file}: sweep()")  # sweep() may be endless
    if not found:
        raise ValueError(f"{file}: sweep() yields nothing")
    return found


def overrides_of(
    file: str,
    specs: Sequence[str],
    *,
    paired: bool = False,
    trials: int | None = None,
    seed: int = 0,
    arguments: Sequence[str] = (),
) -> list[sweep_flag.Overrides]:
    """The overrides of each trial: the file's own `sweep()`, combined with the flags.

    Args:
      file: the config file.
      specs: the values of `--sweep` flags, see `sweep_flag`.
      paired: whether `--zip` is given.
      trials: how many combinations to draw for each trial of the file's own sweep; None for a grid.
      seed: the seed of the draws.
      arguments: the flags of all trials.

    Raises:
      ValueError: one line on what is wrong.
    """
    own = own_sweep(file)
    axes = [sweep_flag.parse(spec) for spec in specs]
    if not axes and own == [{}]:
        raise ValueError(
            "nothing to sweep: give --sweep=KEY=VALUES, such as --sweep=config.seed=0:5, or a "
            "config with sweep(); experiments.train trains a single config"
        )
    if trials is None:
        return list(sweep_flag.times(own, sweep_flag.combine(axes, paired)))
    if not axes:
        raise ValueError(
            f"--trials={trials} draws from what --sweep says, and there is no --sweep: leave "
            "--trials out to train what the config's sweep() yields"
        )
    if paired:
        raise ValueError(f"--trials={trials} draws from what --sweep says, without --zip")
    integer = integers(arguments, own, axes).__contains__
    return list(sweep_flag.times(own, sweep_flag.draw(axes, trials, seed, integer)))


def integers(
    arguments: Sequence[str], own: Sequence[sweep_flag.Overrides], axes: Sequence[sweep_flag.Axis]
) -> set[str]:
    """The keys of settings whose type is integer, set or not, in the config of the first values.

    One that may be a fraction is none where a range has ends that are fractions.
    The values may choose the variant. Every trial has the drawn settings, so any trial will do.
    """
    row = own[0] | {a.key: a.texts[0] for a in axes if isinstance(a, sweep_flag.Values)}
    try:
        config = _with_unset(_arguments(arguments, row))
    except ValueError as error:
        raise ValueError(f"{written(row)}: {_with_hint(error, arguments, row)}") from error
    whole = {f"config.{path}" for path in settings_of(config) if get_type(path, config) is int}
    ends = {a.key: (a.low, a.high) for a in axes if isinstance(a, sweep_flag.Range)}
    fractions = {f"config.{path}" for path in config_flags.fractions(config)}
    return whole - {key for key in fractions & ends.keys() if any(end % 1 for end in ends[key])}


def _with_unset(arguments: Sequence[str]) -> ConfigDict:
    """The config that flags make, with all settings of its variant's class, unset."""
    config = read_config(arguments)
    config_flags.unset(config)
    return config


def make(arguments: Sequence[str], overrides: Iterable[sweep_flag.Overrides]) -> list[Trial]:
    """Make the trials with these flags and overrides.

    Args:
      arguments: `--config=FILE:...`, and the settings of all trials.
      overrides: the overrides of each trial.

    Raises:
      ValueError: the flags of some trials are wrong, with a line for each kind of mistake; or two
        trials have the same config.
    """
    rows = list(overrides)
    made, wrong = [], []
    labels = labels_of(list(dict.fromkeys(key for row in rows for key in row)))
    for row in rows:
        try:
            made.append(make_one(arguments, row, labels))
        except ValueError as error:
            wrong.append((written(row), str(error)))
    refuse(wrong, len(rows))
    return named_apart(made)


def make_one(
    arguments: Sequence[str], row: sweep_flag.Overrides, labels: Mapping[str, str]
) -> Trial:
    """The trial with these flags and overrides.

    Args:
      labels: what the trial's name calls each key (`labels_of`).

    Raises:
      ValueError: one line on what is wrong with its flags.
    """
    try:
        own = _arguments(arguments, row)
        config = read_config(own)
        return Trial(name_of(row, labels, config), own, row, fill(config.to_dict()))
    except ValueError as error:
        raise ValueError(_with_hint(error, arguments, row)) from error


def refuse(wrong: Sequence[tuple[str, str]], of: int) -> None:
    """Raise a ValueError if there are mistakes, given as (trial, mistake), equal ones together.

    Args:
      of: the number of all trials.
    """
    by_mistake: dict[str, list[str]] = {}
    for name, mistake in wrong:
        by_mistake.setdefault(mistake, []).append(name)
    lines = []
    for mistake, names in by_mistake.items():
        who = "every trial" if len(names) == of else "; ".join(names)
        lines.append(f"{who}: {mistake}")
    if lines:
        raise ValueError("\n       ".join(lines))


def written(row: Mapping[str, str]) -> str:
    """Overrides as one text."""
    return ",".join(f"{key}={text}" for key, text in row.items())


def _arguments(arguments: Sequence[str], row: Mapping[str, str]) -> tuple[str, ...]:
    """The flags of a trial: those of all trials, with its overrides added."""
    first, *rest = arguments
    file, _, text = first.removeprefix("--config=").partition(":")
    items = [item for item in text.split(",") if item]
    given = {item.partition("=")[0] for item in items}
    given |= {each.partition("=")[0].removeprefix("--") for each in rest}
    for key, value in row.items():
        if key in given:
            raise ValueError(f"{key} is swept, and set for all trials: leave one of the two out")
        if key.startswith("config."):
            rest.append(f"--{key}={value}")
        elif "," in value:
            raise ValueError(f"{key}={value}: an argument of a config cannot hold a comma")
        else:
            items.append(f"{key}={value}")
    return (f"--config={file}" + (f":{','.join(items)}" if items else ""), *rest)


def _with_hint(mistake: ValueError, arguments: Sequence[str], row: Mapping[str, str]) -> str:
    """The text of a mistake, with a hint if one is known, such as the path of a setting."""
    unknown = config_files.unknown_argument(mistake)
    if unknown is not None and unknown.key in row:
        return _no_argument(unknown, arguments)
    return str(mistake)


def _no_argument(unknown: UnknownArgumentError, arguments: Sequence[str]) -> str:
    """A message that a config has no such argument, and which setting or argument may be meant."""
    key, known = unknown.key, unknown.known
    settings = meant(key, all_names(read_config(arguments)))
    near = "" if settings else nearest_if_close(key, known)
    if not near:
        such = " or ".join(settings[:3]) or "such as config.optimizer.learning_rate"
        near = f"; a setting is swept by its path, {such}"
    return f"the config has no argument '{key}', but {', '.join(known)}{near}"


def named_apart(trials: Sequence[Trial], taken: Iterable[str] = ()) -> list[Trial]:
    """Make the names of trials distinct: a too long or repeated name is cut and gets a digest.

    Args:
      taken: names that no trial may get.

    Raises:
      ValueError: two trials have the same config.
    """
    seen: dict[str, Trial] = {}
    for trial in trials:
        if (other := seen.setdefault(trial.digest, trial)) is not trial:
            one, two = (written(each.overrides) for each in (other, trial))
            raise ValueError(f"two trials are the same: {one} and {two}")
    names = Counter([*taken, *(trial.name for trial in trials)])
    apart = []
    for digest, trial in seen.items():
        name = trial.name
        if names[name] > 1 or len(name) > _LONGEST:
            name = f"{name[:_LONGEST]}-{digest[:8]}"
        apart.append(dataclasses.replace(trial, name=name))
    return apart


_UNSAFE = re.compile(r"[^A-Za-z0-9._+=-]+")


def labels_of(keys: Sequence[str]) -> dict[str, str]:
    """The shortest ending of each key that no other key has."""
    labels = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
        others = [other for other in keys if other != key]
        labels[key] = next(
            (e for e in ends if not any(f".{o}".endswith(f".{e}") for o in others)), key
        )
    return labels


def name_of(row: Mapping[str, str], labels: Mapping[str, str], config: ConfigDict) -> str:
    """A trial's name: its overrides, with settings in normal form, however they were written."""
    items = []
    for key, text in row.items():
        value: Any = text
        if key.startswith("config."):
            value = get_value(key.removeprefix("config."), config)
        written = str(value) if isinstance(value, ConfigDict) else sweep_flag.text_of(value)
        safe = _UNSAFE.sub("-", written)
        items.append(f"{labels[key]}={safe if safe == written else safe.strip('-')}")
    return ",".join(items)
