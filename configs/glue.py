"""Any GLUE or SuperGLUE task, any variant: all-MiniLM-L6-v2 by default, in minutes on two cores.

    python -m experiments.train --config=configs/glue.py:task=cola,variant=dora,seed=0 \
        --workdir=runs/glue/cola/dora/0
    python -m experiments.table --table=glue --results=runs/glue

`task=ax` is MNLI with the diagnostic set: it gives predictions for the set, and `matthews_ax` if
the folder has the labelled `diagnostic-full.tsv`. `super_rte` is SuperGLUE's RTE.

`:source=tsv,folder=FOLDER` reads the official files from a folder in the GLUE layout. `variant` is
a file of `variants/` or your own (`my_package.my_variant`). Except for what its file suggests (the
learning rate, mostly), settings are the same for all. A fair comparison needs tuned rates: set
`--config.optimizer.learning_rate=`, chosen on examples held out from training by
`--config.data.validation=500`, never on the development set. For models other than minilm, the
rates are untuned starting points.
"""

from ml_collections import ConfigDict

from configs import common, common_tasks

ARGUMENTS = common_tasks.arguments(
    task=(
        "cola",
        *(task for task in common_tasks.GLUE if task != "cola"),
        *("wnli", "ax", *common_tasks.SUPER_GLUE),
    ),
    variant="lora",
    model=tuple(common_tasks.MODELS),
    storage=("none", *common_tasks.STORAGES),
)
TABLE = common_tasks.table("GLUE", spread="ci95")


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    return common_tasks.experiment(
        "glue",
        choice,
        common_tasks.starting_point(choice["model"]),
        variant=common.variant(choice["variant"]),
        storage=choice["storage"],
    )
