"""Draw a picture of finished runs as a PNG.

    python -m experiments.plot --results=runs/glue --kind=parameters --out=parameters.png

Kinds: `heatmap`, a cell for each pair of settings, such as learning rate and rank; `settings`, the
same as lines; `parameters`, score against parameters; `training`, loss and score by step;
`learning_rate`, score by learning rate; `examples`, score by the number of training examples;
`ranks`, the ranks that AdaLoRA or EVA chose in one run.
"""

from pathlib import Path

from absl import flags

from experiments import cli
from experiments.analysis import recorded_runs
from experiments.reports.figures import require_matplotlib
from lora_jax.messages import require_known

_RESULTS = flags.DEFINE_string("results", None, "The folder with the runs' records below it.")
_KIND = flags.DEFINE_string(
    "kind",
    "parameters",
    "What to draw: heatmap, settings, parameters, training, learning_rate, examples or ranks.",
)
_OUT = flags.DEFINE_string("out", None, "The PNG file to write.")
_TABLE = flags.DEFINE_string(
    "table", None, "Draw only runs of this config. The default is all runs."
)
_SIZE = flags.DEFINE_enum("size", "full", ["full", "smoke"], "Draw only runs of this size.")


def show() -> None:
    require_matplotlib()
    from experiments.reports.figures.scores import FIGURES, SETTINGS, draw

    kind = str(_KIND.value)
    require_known(kind, [*FIGURES, *SETTINGS, "ranks"], f"--kind={kind}: unknown picture")
    if kind == "ranks":
        cli.refuse_ignored((_TABLE, _SIZE), "--kind=ranks draws the one run of --results")
    out = Path(str(_OUT.value))
    if out.suffix != ".png":
        raise ValueError(f"--out {out}: expected a name that ends with .png")
    notes: list[str] = []
    drawn = draw(Path(str(_RESULTS.value)), kind, out, _TABLE.value, _SIZE.value, say=notes.append)
    print("\n".join([f"picture: {out}", *notes]))
    cli.warn(recorded_runs.unsealed(drawn))


if __name__ == "__main__":
    flags.mark_flags_as_required(["results", "out"])
    cli.main(show)
