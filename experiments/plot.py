"""Draw a picture of finished runs as a PNG.

    python -m experiments.plot --results=runs/glue --kind=parameters --out=parameters.png

Kinds: `parameters`, score against parameters; `training`, loss and score by step;
`learning_rate`, score by learning rate; `ranks`, the ranks that AdaLoRA chose in one run.
"""

from pathlib import Path

from absl import flags

from experiments import cli
from experiments.analysis import recorded_runs
from experiments.figures.scores import FIGURES, draw

_RESULTS = flags.DEFINE_string("results", None, "The folder with the runs' records below it.")
_KIND = flags.DEFINE_enum("kind", "parameters", [*FIGURES, "ranks"], "What to draw.")
_OUT = flags.DEFINE_string("out", None, "The PNG file to write.")
_TABLE = flags.DEFINE_string(
    "table", None, "Draw only runs of this config. The default is all runs."
)
_SIZE = flags.DEFINE_enum("size", "full", ["full", "smoke"], "Draw only runs of this size.")


def show() -> None:
    out = Path(str(_OUT.value))
    if out.suffix != ".png":
        raise ValueError(f"--out {out}: expected a name that ends with .png")
    drawn = draw(Path(str(_RESULTS.value)), _KIND.value, out, _TABLE.value, _SIZE.value)
    print(f"picture: {out}")
    cli.warn(recorded_runs.unsealed(drawn))


if __name__ == "__main__":
    flags.mark_flags_as_required(["results", "out"])
    cli.main(show)
