"""A picture of what was run.

    python -m experiments.plot --results=runs/glue --kind=parameters --out=parameters.png

Kinds: `parameters`, score against trained parameters; `training`, loss and score by step;
`learning_rate`, score by learning rate; `ranks`, the ranks that AdaLoRA chose, of one run.
"""

from pathlib import Path

import numpy as np
from absl import flags

from experiments import cli, collect, plots, score_plots
from lora_jax.partition import nearest

_RESULTS = flags.DEFINE_string("results", None, "Folder with the runs' records below it.")
_KIND = flags.DEFINE_enum("kind", "parameters", [*score_plots.KINDS, "ranks"], "What is drawn.")
_OUT = flags.DEFINE_string("out", None, "The PNG to write.")
_TABLE = flags.DEFINE_string("table", None, "Only runs of this config.")
_SIZE = flags.DEFINE_enum("size", "full", ["full", "smoke"], "Which runs.")


def show() -> None:
    out = Path(str(_OUT.value))
    if out.suffix != ".png":
        raise ValueError(f"--out {out}: expected a name that ends with .png")
    draw(Path(str(_RESULTS.value)), _KIND.value, out, _TABLE.value, _SIZE.value)
    print(f"picture: {out}")


def draw(results: Path, kind: str, out: Path, table: str | None = None, size: str = "full") -> None:
    """Draw the runs below a folder.

    Raises:
      ValueError, FileNotFoundError: no such folder, nothing to draw, or records that do not go
        together.
    """
    found = collect.find(results)
    if kind == "ranks":
        _ranks(found, out)
        return
    runs = [run for run in found if run.study]
    tables = sorted({run.study["table"] for run in runs})
    if table is not None and table not in tables:
        raise ValueError(f"no runs of '{table}' in {results}; nearest: {nearest(table, tables)}")
    own = [run for run in runs if table in (None, run.study["table"])]
    if kind == "learning_rate":  # whose runs differ, and may be scored on held-out examples
        chosen = [run for run in own if run.study["size"] == size]
    else:
        chosen = [run for each in tables for run in collect.collect(own, each, size).runs]
    figure = score_plots.KINDS[kind](chosen)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def _ranks(found: list[collect.Run], out: Path) -> None:
    chosen = [run for run in found if run.record.ranks]
    if len(chosen) != 1:
        folders = ", ".join(str(run.folder) for run in chosen[:3]) or "none"
        raise ValueError(
            f"--kind=ranks draws one run: name the folder of one that chose ranks ({folders})"
        )
    ranks = chosen[0].record.ranks or {}
    out.parent.mkdir(parents=True, exist_ok=True)
    plots.rank_map({path: np.asarray(each) for path, each in ranks.items()}, out)


if __name__ == "__main__":
    flags.mark_flags_as_required(["results", "out"])
    cli.main(show)
