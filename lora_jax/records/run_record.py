"""The record of a run, in three files: config.json, metrics.jsonl and, written last, record.json.

Every file is strict JSON (no NaN). A process killed at any moment leaves the old file or the new
one; in `metrics.jsonl` it leaves complete lines, and at most one torn last line.
"""

import dataclasses
import functools
import json
import math
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from lora_jax.files import json_text
from lora_jax.files.atomic import write_atomically
from lora_jax.files.json_text import canonical, config_digest, numbers, plain
from lora_jax.records import seal

LOCK = ".lock"
"""The file in a run's folder that the training process holds locked."""
Status = Literal["completed", "diverged", "failed", "stopped"]
"""How a run ended."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A run's settings and results; `record.json` holds exactly these fields and their seal.

    Times are wall-clock seconds: `seconds` of training, `seconds_total` of the whole process; for
    trials that shared a program, each one's share. Metrics are finite numbers; in a run that did
    not complete they may be None.
    """

    schema_version: Literal[1] = 1
    experiment: str
    config: dict[str, Any]
    config_digest: str
    versions: dict[str, str | None]
    device: dict[str, str | int]
    git: dict[str, str | bool] | None
    seed: int
    data_digest: str
    weights_digest: str | None
    parameters_trained: int
    parameters_total: int  # of the base model, without adapters
    metrics_best: dict[str, float | None]
    metrics_last: dict[str, float | None]
    rule: str  # how the best was chosen, e.g. "max accuracy over evaluations"
    steps: int
    best_step: int | None
    seconds: float
    seconds_total: float
    peak_memory_bytes: int
    status: Status
    note: str = ""
    # For a method that chooses ranks: the rank of each weight, or for a stack a list of its ranks.
    ranks: dict[str, Any] | None = None
    metric: str = ""  # the main one's name, e.g. "matthews"
    parameters_adapters: int | None = None  # trained, without heads, as papers count them
    target: dict[str, Any] | None = None  # {"score", "step", "seconds"}; None if not reached
    # Every evaluation, [{"step", "seconds", "score"}]: `seconds` of training until then, `score` is
    # the main metric. `reached` uses it to find when a score was first reached.
    evaluations: list | None = None
    tokenised_per_second: float | None = None  # training examples, when tokenised; a cache keeps it
    metrics_first: dict[str, Any] | None = None  # before the first step, if asked for
    # Texts that a language model wrote, [{"prompt", "expected", "before", "after"}].
    samples: list | None = None
    signatures: dict[str, str] | None = None  # how metrics of such texts were computed
    # The largest error of the compiled step, which `lora_jax.compiled.audit` measured before
    # training: {"leaf", "error", "tolerance", "batches"}; None if it did not run.
    audit: dict[str, Any] | None = None
    # What an initialisation from data has seen: {"batches", "examples", "seconds", "digest"}, the
    # first batches of training. Runs of one digest share it; the seconds are those of the first.
    gathered: dict[str, Any] | None = None
    # Of a trial of successive halving, the rungs that it reached, [{"step", "score", "place",
    # "trials", "kept"}]: its place among the trials of the rung, and how many of them went on.
    rungs: list | None = None
    # Where experiment trackers have the run, a URL or a path by the tracker's name; None without
    # trackers. It says nothing of the result.
    trackers: dict[str, str] | None = None
    # Of the base model's config and tokenizer files, as weights_digest is of its weights.
    reading_digest: str | None = None
    # The check of the last line of metrics.jsonl: a file that was cut at a line's end is noticed.
    metrics_check: str | None = None
    # The names of the classes, in the order of an encoder's outputs; empty for a regression, None
    # for a language model and in records of earlier versions.
    label_names: list | None = None

    def reached(self, score: float) -> dict[str, Any] | None:
        """The first evaluation whose main metric was at least `score`; None if there is none."""
        known = (numbers(each) for each in self.evaluations or ())  # a diverged run has "NaN"
        return next((each for each in known if each["score"] >= score), None)


def validate(values: Mapping[str, Any]) -> Record:
    """The record that a dict describes; ValueError lists all missing, unknown and wrong fields."""
    hints = _hints()
    required = {f.name for f in dataclasses.fields(Record) if f.default is dataclasses.MISSING}
    required.add("schema_version")  # its default is for building a record, not for reading one
    problems = [f"{name} is missing" for name in hints if name in required - values.keys()]
    problems += [f"{name} is not a field of a record" for name in values if name not in hints]
    for name, hint in hints.items():
        if name in values:
            problems += _problems(values[name], hint, name)
    if not problems:
        record = Record(**values)
        problems += _contradictions(record)
        if not problems:
            return record
    raise ValueError(f"not a valid record: {'; '.join(problems)}")


@functools.cache
def _hints() -> dict[str, Any]:
    """The types of a record's fields, by name."""
    return typing.get_type_hints(Record)


def _problems(value: Any, hint: Any, where: str) -> Iterator[str]:
    """Yield each place where a value does not match its annotation.

    Floats must be finite; booleans are not integers.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict and isinstance(value, Mapping):
        for key, item in value.items():
            yield from _problems(item, args[1], f"{where}.{key}")
        return
    if origin is types.UnionType:
        good = any(not list(_problems(value, arg, where)) for arg in args)
    elif origin is Literal:
        good = any(value == arg and type(value) is type(arg) for arg in args)
    elif hint is float:
        good = isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)
    elif hint is int:
        good = isinstance(value, int) and type(value) is not bool
    else:
        good = hint is Any or (origin is None and isinstance(value, hint))
    if not good:
        expected = hint.__name__ if isinstance(hint, type) and origin is None else str(hint)
        yield f"{where} is {value!r}, expected {expected.replace('typing.', '')}"


def _contradictions(r: Record) -> Iterator[str]:
    if r.config_digest != config_digest(r.config):
        yield "config_digest is not the digest of config"
    counts = ("parameters_trained", "parameters_total", "parameters_adapters")
    for name in (*counts, "seconds", "seconds_total", "peak_memory_bytes"):
        if (getattr(r, name) or 0) < 0:  # adapters may hold more than a small model has
            yield f"{name} is negative"
    if not 0 <= (r.best_step or 0) <= r.steps:
        yield f"best_step is {r.best_step} of {r.steps} steps"
    for each in r.evaluations or ():
        own = [numbers(each).get(k) for k in ("step", "seconds", "score")] if _named(each) else []
        if not own or not all(isinstance(x, int | float) for x in own):
            yield f"evaluations has {each!r}, expected step, seconds and score"
    for each in r.samples or ():
        if not _named(each):
            yield f"samples has {each!r}, expected texts by name"
    for each in r.label_names or ():
        if not isinstance(each, str):
            yield f"label_names has {each!r}, expected names"
    if r.status == "completed":
        for name in ("metrics_best", "metrics_last"):
            for key, value in getattr(r, name).items():
                if value is None:
                    yield f"{name}.{key} is None in a completed run"


def _named(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def write(folder: str | os.PathLike, record: Record) -> None:
    """Write `record.json` atomically; if the run did not complete, non-finite metrics become null.

    Raises:
      ValueError: the record is not valid, or the folder has a different one of a completed run.
    """
    values = dataclasses.asdict(record)
    if record.status != "completed":
        for name in ("metrics_best", "metrics_last"):
            metrics = values[name].items()
            values[name] = {
                k: v if v is not None and math.isfinite(v) else None for k, v in metrics
            }
    values = plain(values, "record")
    new, old = validate(values), read(folder)
    if old is not None and old.status == "completed" and old != new:
        raise ValueError(f"{folder} holds the record of a completed run: name another --workdir")
    write_atomically(Path(folder) / "record.json", pretty(seal.sealed(values)))


def read(folder: str | os.PathLike) -> Record | None:
    """The validated record in a folder, or None if no run has ended there yet.

    Raises:
      ValueError: a record that is not valid, or that was changed after it was written.
    """
    found = read_sealed(folder)
    return None if found is None else found[0]


def read_sealed(folder: str | os.PathLike) -> tuple[Record, bool] | None:
    """As `read`, with whether the record has a seal; records of earlier versions have none."""
    path = Path(folder) / "record.json"
    if not path.exists():
        return None
    content = json_text.read_object(path)
    return opened(content, str(path), lambda: _has_checks(Path(folder) / "metrics.jsonl"))


def opened(
    content: Mapping[str, Any], where: str, has_checks: Callable[[], bool]
) -> tuple[Record, bool]:
    """The validated record in the content of a `record.json`, and whether it has a seal.

    Args:
      where: the file, for messages.
      has_checks: whether the run's metrics have the checks that came with seals.

    Raises:
      ValueError: as `read`.
    """
    try:
        values, found = seal.opened(content)
        record = validate(values)
        seal.require_unchanged(values, found)
        if found is None and has_checks():
            raise ValueError(
                "it has no seal, but metrics.jsonl beside it has checks: it was changed"
            )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return record, found is not None


def _has_checks(metrics: Path) -> bool:
    """Whether lines of metrics have the checks that came with the seals of records."""
    try:
        with metrics.open("rb") as file:
            return seal.has_check(file.readline())
    except FileNotFoundError:
        return False


def claim(workdir: str | os.PathLike, config: Mapping[str, Any]) -> bool:
    """Claim a folder for a run: True if it already holds this configuration (resume or read it).

    A new or empty folder gets `config.json`, the resolved configuration; the folder is created.

    Raises:
      ValueError: the folder holds another configuration (the message names differing keys) or
        other files. Nothing is changed then.
    """
    folder, values = Path(workdir), plain(config, "config")
    path = folder / "config.json"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--workdir {folder} is a file: name a folder")
    if not path.exists():
        names = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
        torn = [n for n in names if n.startswith(".config.json.") and n.endswith(".tmp")]
        names = [n for n in names if n not in (LOCK, *torn)]
        if names:
            what = f"{names[0]} but no config.json"
            raise ValueError(f"--workdir {folder} holds {what}: name a new or empty folder")
        write_atomically(path, pretty(values))
        return False
    there, here = dict(_leaves(json_text.read_object(path))), dict(_leaves(values))
    keys = [key for key in sorted(there | here) if there.get(key) != here.get(key)]
    if keys:
        differ = [
            f"{k} is {there.get(k, 'absent')} there and {here.get(k, 'absent')} here" for k in keys
        ]
        more = f" (and {len(keys) - 3} more)" if len(keys) > 3 else ""
        raise ValueError(
            f"--workdir {folder} holds a run of another configuration: {', '.join(differ[:3])}"
            f"{more}; name another --workdir"
        )
    return True


def _leaves(value: Any, where: str = "config") -> Iterator[tuple[str, str]]:
    """The settings of a config, as text; one that is null is as good as absent."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{where}.{key}")
    elif value is not None:
        yield where, canonical(value)


def pretty(value: Any) -> bytes:
    """The content of a `record.json` or a `config.json` with this value."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
