"""Decide which runs may be compared: what a study varies, and what must be equal in all runs."""

from collections.abc import Sequence

from configs.settings import RunConfig, fields_of
from experiments.analysis import collect_runs
from experiments.analysis.recorded_runs import Run
from experiments.analysis.unfinished_runs import Unfinished
from lora_jax.suggest import require_known

VARIED = ("variant", "optimizer", "quantize", "targets", "also_train")
"""The sections of a config that methods and their settings may vary."""
ALSO_VARIED = ("train.optimizer", "train.ema")
"""Settings of other sections that they may vary, too."""
BESIDE = ("study.row", "data.validation")


def contest_key(run: Run) -> tuple[str, str, str]:
    """The study, the model and the task of a run."""
    if run.study.table:
        return run.study.table, run.model, run.study.column
    return run.record.experiment, run.config.model.name, run.config.data.name


def method_key(run: Run | Unfinished) -> str:
    """The key of a run's method: its row, or without a study its variant and storage."""
    if run.study.table:
        return run.study.row
    name, storage = variant_and_storage(run)
    return name if storage == "none" else f"{name}_{storage}"


def variant_and_storage(run: Run | Unfinished) -> tuple[str, str]:
    """The names of a run's variant and of its storage."""
    assert run.config is not None
    return run.config.variant.name, run.config.quantize.storage


def varied_and_fixed(
    config: RunConfig, varies: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Split the settings of a config into those that a study varies, and the fixed ones.

    Args:
      varies: settings that vary besides those.
    """
    varied, fixed = {}, {}
    for key, value in collect_runs.settings_of(config).items():
        if key.partition(".")[0] in VARIED or key in (*ALSO_VARIED, *varies):
            varied[key] = value
        elif key not in BESIDE:
            fixed[key] = value
    return varied, fixed


def require_settings_of(names: Sequence[str], runs: Sequence[Run]) -> None:
    """Raise a ValueError if `--varies` has a name that is no setting of the runs."""
    kinds = {type(run.config) for run in runs}
    known = {name for kind in kinds for name in fields_of(kind)}
    known |= {name for run in runs for name in collect_runs.settings_of(run.config)}
    for name in names:
        require_known(name, known, f"--varies={name}: no run has this setting")


def require_comparable(runs: Sequence[Run], varies: Sequence[str]) -> None:
    """Raise a ValueError if runs differ in fixed settings, weights or examples.

    Also raise it if two runs of one method differ in variant or storage.
    """
    first, settings = runs[0], varied_and_fixed(runs[0].config, varies)[1]
    firsts: dict[tuple[bool, int], Run] = {}
    methods: dict[str, Run] = {}
    for run in runs:
        if said := collect_runs.different(settings, varied_and_fixed(run.config, varies)[1]):
            raise ValueError(
                f"{first.folder} and {run.folder} cannot be compared: {said} (if the study varies "
                f"it, add --varies={said.partition(' ')[0]})"
            )
        collect_runs.require_same_weights(first, run)
        same = firsts.setdefault((run.held_out, run.number[1]), run)
        if run.record.data_digest != same.record.data_digest:
            raise ValueError(f"{same.folder} and {run.folder} had different examples")
        other = methods.setdefault(method_key(run), run)
        both = zip(variant_and_storage(other), variant_and_storage(run), strict=True)
        for name, (one, two) in zip(("variant.name", "quantize.storage"), both, strict=True):
            if one != two:
                raise ValueError(
                    f"{other.folder} and {run.folder} are of one method, '{method_key(run)}', but "
                    f"{name} is {one} in one and {two} in the other"
                )
