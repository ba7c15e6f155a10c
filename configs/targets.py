"""Which weights to adapt: q,v / q,k,v,o / all linears; last half or every other layer; embeddings.

    python -m experiments.train --config=configs/targets.py:targets=all_last_half,task=cola,seed=0 \
        --workdir=runs/targets/all_last_half/0
    python -m experiments.table --table=targets --results=runs/targets
    python -m experiments.plot --kind=parameters --results=runs/targets --out=targets.png

The rank is the same for all targets, so the numbers of parameters differ: the plot shows the score
against them. A target is a pattern, or (pattern, settings), where the setting `layers` is (start,
stop, step), as in a slice.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, common_tasks

ARGUMENTS = common_tasks.arguments(
    task=("cola", *(task for task in common_tasks.GLUE if task != "cola")),
    targets=("qv", "qkvo", "all", "all_last_half", "all_every_other", "all_embeddings"),
    rank=(8, 1, 2, 4, 16, 32, 64),
    model=("minilm", "roberta_base", "roberta_large"),
)
TABLE = common_tasks.table("Targets", spread="ci95", seeds=5)


def patterns(name: str, layers: int) -> tuple[Any, ...]:
    """The targets with this name, for a model with `layers` layers."""
    every = common_tasks.SIX_LINEARS
    return {
        "qv": common_tasks.QUERY_VALUE,
        "qkvo": ("attention/(query|key|value|output)/kernel",),
        "all": every,
        "all_last_half": tuple((p, {"layers": (layers // 2, layers, 1)}) for p in every),
        "all_every_other": tuple((p, {"layers": (0, layers, 2)}) for p in every),
        "all_embeddings": (*every, "embeddings/word/embedding"),
    }[name]


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    layers = common_tasks.LAYERS[choice["model"]]
    if common.needs_nothing(choice):
        layers = common_tasks.TINY_LAYERS
    return common_tasks.experiment(
        "targets",
        choice,
        common_tasks.starting_point(choice["model"]),
        row=f"{choice['targets']}_r{choice['rank']}",
        variant=common.variant("lora", rank=choice["rank"], alpha=2.0 * choice["rank"]),
        targets=patterns(choice["targets"], layers),
    )
