"""Domain shift: train on one domain, then on another; evaluate both each time: gain, forgetting.

    C=configs/domain_shift.py:pair=mrpc_qqp,seed=0 FIRST=runs/domain_shift/source/0
    python -m experiments.train --config=$C,stage=source --workdir=$FIRST
    python -m experiments.train --config=$C,stage=target,start_from=$FIRST \
        --workdir=runs/domain_shift/target/0
    python -m experiments.table --table=domain_shift --results=runs/domain_shift

The second run starts from the first one's adapter and head. Gain is the increase of the target's
score by training on the target; forgetting is the decrease of the source's score. Both are computed
seed by seed. A pair has the same labels in the same order: paraphrases of news and of questions
(MRPC, QQP), entailment of answers and of hypotheses (QNLI, RTE). all-MiniLM-L6-v2 was pretrained on
pairs of questions. SST-2 and Rotten Tomatoes cannot be a pair: most of SST-2's development set is
in Rotten Tomatoes.
"""

from ml_collections import ConfigDict

from configs import common, common_tasks

PAIRS = ("mrpc_qqp", "qqp_mrpc", "qnli_rte", "rte_qnli")
ARGUMENTS = common_tasks.arguments(
    pair=PAIRS,
    stage=("source", "target"),
    variant="lora",
    model=("minilm", "roberta_base"),
    start_from="",
)
# (heading, column, metric); `_extra` marks the metrics of `data.extra`.
COLUMNS = (
    ("source, after source", "source", "accuracy"),
    ("target, after source", "source", "accuracy_extra"),
    ("target, after target", "target", "accuracy"),
    ("source, after target", "target", "accuracy_extra"),
)
DIFFERENCES = (
    ("gain", ("target", "accuracy"), ("source", "accuracy_extra")),
    ("forgetting", ("source", "accuracy"), ("target", "accuracy_extra")),
)
TABLE = common_tasks.table(
    "Domain shift", spread="ci95", seeds=5, columns=COLUMNS, differences=DIFFERENCES
)


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    source, target = choice["pair"].split("_")
    first = choice["stage"] == "source"
    if first and choice["start_from"]:
        raise ValueError("start_from: only the second run, stage=target, starts from another")
    if not first and not choice["start_from"]:
        raise ValueError("start_from: the second run, stage=target, needs the first one's folder")
    variant = choice["variant"]
    config = common_tasks.experiment(
        "domain_shift",
        {**choice, "task": source if first else target},
        common_tasks.starting_point(choice["model"], select="last"),
        row=f"{choice['pair']}_{variant}",
        column=choice["stage"],
        variant=common.variant(variant),
    )
    config.update({"data": {"extra": common_tasks.data_name(target if first else source)}})
    return config
