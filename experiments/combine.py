r"""Combine the adapters of finished runs of one base into one LoRA adapter.

    python -m experiments.combine --runs=runs/a,runs/b --weights=0.7,0.3 --by=sum --out=runs/ab

Each way is one of the updates of the weights, dW = W' - W, so the runs may be of any methods:

    sum           sum of weights * dW, exact: the ranks add up
    linear        the same, divided by the sum of the weights
    interpolate   between two runs, with weights that sum to 1
    negate        minus the sum: away from what was learnt
    ties          TIES: trim to --density, elect signs, average what agrees (needs --rank)
    dare          DARE: drop all but --density, rescale, and sum (needs --rank)

`--rank` cuts every update to a rank by SVD, and the table says the relative error that this makes
in each weight. Methods without a rank (DoRA, full-rank ones) need it, too. What any run trains in
full (heads, biases, whole weights) is combined linearly, as changes from each run's own start, and
is not part of the LoRA; runs of different tasks keep the first's head with --keep='classifier/.*'.

--out is a new folder, like that of a run of LoRA: its record has the scores on the first run's
task, and a run with the variant, targets and also_train of its config.json can start from it, which
the last line says how to do. `combined.json` says what it was made of.
"""

from pathlib import Path

import numpy as np
from absl import flags

import lora_jax as lj
import variants
from experiments import cli
from experiments.imports import combined_run
from experiments.imports.combined_run import open_runs, origin, params_before
from experiments.runs import adapter_as_run
from experiments.setup.devices import announce
from lora_jax.adapters.merging import BY, KEPT, Method
from lora_jax.files.atomic import new_folder
from lora_jax.table import Table

_RUNS = flags.DEFINE_list("runs", None, "The folders of the runs.")
_WEIGHTS = flags.DEFINE_list(
    "weights", None, "A weight for each run. The default is 1, and 0.5 to interpolate."
)
_BY = flags.DEFINE_string("by", "sum", f"How to combine them: {', '.join(BY)}.")
_RANK = flags.DEFINE_integer(
    "rank",
    None,
    "Cut the update of every weight to this rank. By default, ranks add up.",
    lower_bound=1,
)
_DENSITY = flags.DEFINE_float(
    "density",
    None,
    "With --by=ties or --by=dare: the share of entries that is kept. The default is 0.2 for ties "
    "and 0.1 for dare.",
)
_SEED = flags.DEFINE_integer(
    "seed",
    0,
    "With --by=dare: the seed that draws which entries are dropped.",
    lower_bound=0,
)
_KEEP = flags.DEFINE_list(
    "keep", [], "Patterns of parameters trained in full that stay as the first run has them."
)
_OUT = flags.DEFINE_string("out", None, "The folder to write, which must not exist.")


def combine() -> None:
    folders = [Path(each) for each in _RUNS.value or ()]
    out, rank = cli.run_folder(str(_OUT.value)), _RANK.value
    method = _method(len(folders))
    if out.exists():
        raise ValueError(f"--out={out} exists; name a new folder")
    announce()
    runs = open_runs(folders)
    combined_run.require_published_bases(runs)
    combined = lj.combine_adapters(
        [(each.trainable, each.frozen) for each in runs],
        variants.make("lora"),
        method.weights,
        method.by,
        rank=rank,
        density=method.density,
        seed=method.seed,
        start=[params_before(each) for each in runs],
        keep=_KEEP.value or (),
    )
    size = "smoke" if any(run.config.study.size == "smoke" for run in runs) else "full"
    experiment = combined_run.experiment_of(runs[0].experiment, combined, size)
    weights = [{**origin(run), "weight": w} for run, w in zip(runs, method.weights, strict=True)]
    made_of = {
        "by": method.by,
        "runs": weights,
        "rank": rank,
        "density": method.kept,
        "seed": method.seed if method.by == "dare" else None,
        "kept": _KEEP.value or [],
        "weights_digest": runs[0].record.weights_digest,
        "relative_errors": {path: each.tolist() for path, each in combined.errors.items()},
    }
    note = f"combined by {method.by}: {', '.join(map(str, folders))}"
    with new_folder(out) as folder:
        record = adapter_as_run.write(folder, experiment, combined_run.FILE, made_of, note)
    if combined.errors:
        print(_table(combined))
    adapter_as_run.say(record, out)


def _method(count: int) -> Method:
    """The way that the flags describe, checked before a run is read."""
    usual = 0.5 if _BY.value == "interpolate" else 1.0
    weights = [usual] * count if _WEIGHTS.value is None else cli.numbers("weights", _WEIGHTS.value)
    if len(weights) != count:
        raise ValueError(f"--weights has {len(weights)} numbers, and --runs has {count} folders")
    try:
        method = Method(str(_BY.value), tuple(weights), _DENSITY.value, _SEED.value)
    except ValueError as error:
        raise ValueError(f"--by={_BY.value}: {error}") from error
    if method.by in KEPT and _RANK.value is None:
        raise ValueError(f"--by={method.by} needs --rank, as its update has no rank of its own")
    if method.by != "dare":
        cli.refuse_ignored((_SEED,), "it goes with --by=dare")
    return method


def _table(combined: lj.Combined) -> str:
    """The rank of each weight, and the largest relative error of its matrices."""
    rows = [
        (path, str(combined.trainable["adapters"][path]["a"].shape[-2]), f"{np.max(errors):.2%}")
        for path, errors in combined.errors.items()
    ]
    return Table(("weight", "rank", "largest relative error"), rows).to_text()


if __name__ == "__main__":
    flags.mark_flags_as_required(["runs", "out"])
    cli.main(combine)
