r"""Say how far the adapters of runs move each weight of their base, and how alike two of them are.

    python -m experiments.distance --runs=runs/a,runs/b --plot=distance.png

For each weight, means over its layers: |dW| / |W|, how many of the 10 leading singular vectors of
W' are unlike all of W ("intruders", Shuttleworth et al. 2024), and for two runs the cosine of their
updates and phi(i, i), the share of their i leading input directions that both have (Hu et al. 2021,
equation 4), for the --directions leading ones or as many as there are. Weights that a run trains in
full are left out.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import flags

import lora_jax as lj
from experiments import cli
from experiments.imports.combined_run import open_runs
from experiments.reports.figures import require_matplotlib
from experiments.setup.devices import announce
from lora_jax.table import Table

_RUNS = flags.DEFINE_list("runs", None, "The folders of one run, or of two.")
_DIRECTIONS = flags.DEFINE_integer(
    "directions", 8, "How many leading directions phi(i, j) compares.", lower_bound=1
)
_PLOT = flags.DEFINE_string(
    "plot", None, "A PNG file to draw the norms and phi into. By default, none is drawn."
)


def distance() -> None:
    folders = [Path(each) for each in _RUNS.value or ()]
    if len(folders) not in (1, 2):
        raise ValueError(f"--runs has {len(folders)} folders; expected one or two")
    if len(folders) == 1:
        cli.refuse_ignored((_DIRECTIONS,), "it compares two runs")
    plot = None if _PLOT.value is None else Path(_PLOT.value)
    if plot and plot.suffix != ".png":
        raise ValueError(f"--plot={plot}: expected a name that ends with .png")
    if plot:
        require_matplotlib()
        if not plot.parent.is_dir():
            raise ValueError(f"--plot={plot}: there is no folder {plot.parent}")
    announce()
    runs = open_runs(folders)
    adapters = [(each.trainable, each.frozen) for each in runs]
    columns: dict[str, dict[str, str]] = {}
    norms = {}
    for run, adapter in zip(runs, adapters, strict=True):
        name = str(run.folder)
        norms[name] = {path: each.relative for path, each in lj.distance.norms(adapter).items()}
        columns[f"|dW| / |W| of {name}"] = _means(norms[name])
        columns[f"intruders of {name}"] = _means(lj.distance.intruder_dimensions(adapter))
    similarity = {}
    if len(runs) == 2:
        most = _DIRECTIONS.value
        similarity = lj.distance.subspace_similarity(adapters[0], adapters[1], most, most)
        columns["cosine"] = _means(lj.distance.cosine(adapters[0], adapters[1]))
        columns["phi(i, i)"] = {path: _of_all(each) for path, each in similarity.items()}
    print(_table(columns))
    if plot:
        from experiments.reports.figures.adapter_distance import adapter_distance  # slow to import

        adapter_distance(norms, similarity, plot)
        print(f"picture: {plot}")


def _means(values: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The mean of each weight over its layers, without those where it is not defined."""
    known = {path: each[~np.isnan(each)] for path, each in values.items()}
    return {path: f"{each.mean():.4g}" for path, each in known.items() if each.size}


def _of_all(phi: np.ndarray) -> str:
    """phi of as many directions as all layers have, and their number."""
    diagonal = np.diagonal(phi, axis1=-2, axis2=-1).reshape(-1, phi.shape[-1])
    diagonal = diagonal[~np.isnan(diagonal[:, 0])]  # layers that both adapt
    count = int((~np.isnan(diagonal)).all(axis=0).sum()) if diagonal.size else 0
    return f"{diagonal[:, count - 1].mean():.4g} (i = {count})" if count else ""


def _table(columns: Mapping[str, Mapping[str, str]]) -> str:
    paths = list(dict.fromkeys(path for each in columns.values() for path in each))
    rows = [(path, *(each.get(path, "") for each in columns.values())) for path in paths]
    return Table(("weight", *columns), rows).to_text()


if __name__ == "__main__":
    flags.mark_flags_as_required(["runs"])
    cli.main(distance)
