"""Any GLUE or SuperGLUE task, any variant: all-MiniLM-L6-v2 by default, in minutes on two cores.

    python -m experiments.train --config=configs/glue.py:task=cola,variant=dora,seed=0 \
        --workdir=runs/glue/cola/dora/0
    python -m experiments.table --table=glue --results=runs/glue

`task=ax` is MNLI with the diagnostic set: it gives predictions for the set, and `matthews_ax` if
the folder has the labelled `diagnostic-full.tsv`. `super_rte` is SuperGLUE's RTE.

`:source=tsv,folder=FOLDER` reads the official files from a folder in the GLUE layout. Except for
the learning rate (`configs/common.py`), settings are mostly the same for all variants. A fair
comparison needs tuned rates: set `--config.optimizer.learning_rate=`, chosen on examples held out
from training by `--config.data.validation=500`, never on the development set. For models other than
minilm, the rates are untuned starting points.
"""

from ml_collections import ConfigDict

from configs import common, common_tasks

STORAGES = {"nf4": "NF4", "nf4_double": "NF4 + DQ", "int8": "Int8"}

ARGUMENTS = common_tasks.arguments(
    task=(
        "cola",
        *(task for task in common_tasks.GLUE if task != "cola"),
        *("wnli", "ax", *common_tasks.SUPER_GLUE),
    ),
    variant=("lora", *(name for name in common_tasks.METHODS if name != "lora")),
    model=tuple(common_tasks.MODELS),
    storage=("none", *STORAGES),
)
STORED = {
    f"{name}_{storage}": f"{title} on {text}"
    for name, title in common_tasks.METHODS.items()
    for storage, text in STORAGES.items()
}
TABLE = common_tasks.table("GLUE", spread="ci95", rows={**common_tasks.METHODS, **STORED})


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    variant, storage = choice["variant"], choice["storage"]
    ia3 = variant == "ia3"
    return common_tasks.experiment(
        "glue",
        choice,
        common_tasks.starting_point(choice["model"], variant),
        row=variant if storage == "none" else f"{variant}_{storage}",
        variant=common.variant(variant, **common_tasks.variant_settings(variant, choice["size"])),
        targets=common_tasks.IA3_TARGETS if ia3 else common_tasks.SIX_LINEARS,
        storage=storage,
    )
