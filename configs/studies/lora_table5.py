r"""LoRA, Table 5: which attention matrices to adapt at an equal number of parameters, on MiniLM.

    python -m experiments.tune --study=lora_table5 --workdir=runs/lora_table5 \
        --argument=source=tsv,folder=glue_data
    python -m experiments.report --results=runs/lora_table5 --format=html --out=table5.html

The paper (arXiv 2106.09685v2, section 7.1) spends 18 million parameters of GPT-3 on WikiSQL and
MNLI in seven ways. Its numbers are shown as published, never beside those of all-MiniLM-L6-v2,
which gets 36,864 parameters in the same seven ways. The paper found that q and v at rank 4 do best
on WikiSQL (73.7), as all four do at rank 2 (73.7, and 91.7 on MNLI), and that q alone (70.4) and k
alone (70.0) do clearly worse. The claims say the same of MiniLM.

Rates, sentences, batches and epochs are those of `against_lora`. With the rank goes alpha, so that
the scale, alpha / r, is always 2. A head alone shows whether a task needs an adapter at all. Five
seeds are what 2.5 to 3 core-hours allow, by the times of PILOTS.
"""

from ml_collections import ConfigDict

from configs import common, common_tasks
from configs.studies import against_lora

COLUMNS = ("sst2", "cola")
CHOICES = {
    "q": ("Wq", 8, "query"),
    "k": ("Wk", 8, "key"),
    "v": ("Wv", 8, "value"),
    "o": ("Wo", 8, "attention/output"),
    "qk": ("Wq,Wk", 4, "(query|key)"),
    "qv": ("Wq,Wv", 4, "(query|value)"),
    "qkvo": ("Wq,Wk,Wv,Wo", 2, "attention/(query|key|value|output)"),
}
"""Of each row: the matrices in the paper's notation, the rank, and the pattern of their names."""
PILOTS = (
    "One seed (100), the row qv at its middle rate, 1,000 held-out training sentences. Each number "
    "is a score in points after so many epochs.",
    "CoLA: 10.1, 16.2 (4, 8 epochs). So 8, as in `against_lora`. SST-2: 83.5 (3).",
    "On one core of a shared AMD EPYC, a step took 0.06 to 0.14 s on SST-2 and 0.09 to 0.10 s on "
    "CoLA: about two minutes for a run of each, and 73 to 88 such pairs.",
)
"""What was tried before the first run of the study, and what followed from it."""
NAMES = {row: f"{weights}, r={rank}" for row, (weights, rank, _) in CHOICES.items()}
ROWS = (*CHOICES, "head_only")
REFERENCE = "qv"
STUDY = {
    **against_lora.STUDY,
    "rows": ROWS,
    "columns": COLUMNS,
    "reference": REFERENCE,
    "seeds": tuple(range(5)),
    "claims": (
        "No other choice of attention matrices is better than Wq and Wv at rank 4.",
        "Wq alone and Wk alone, at rank 8, are worse than Wq and Wv at rank 4.",
        "All four at rank 2 are equivalent to Wq and Wv at rank 4.",
    ),
    "pilots": PILOTS,
}
ARGUMENTS = common_tasks.arguments(task=COLUMNS, row=ROWS, model=("minilm",))
TABLE = common_tasks.table(
    "LoRA, Table 5: matrices at equal parameters",
    tasks=COLUMNS,
    published=("LoRA", "Table 5"),
    printed=(common_tasks.column("wikisql"), common_tasks.column("mnli")),
    spread="ci95",
    seeds=len(STUDY["seeds"]),
    rows={row: f"LoRA, {name}" for row, name in NAMES.items()} | {"head_only": ""},
    models=("minilm",),
    notes=("The published rows are GPT-3's; ours are MiniLM's, on other tasks.",),
    questions={"Attention matrices": NAMES},
    controls=("head_only",),
    checks=(
        {"not_better": tuple(row for row in CHOICES if row != REFERENCE)},
        {"worse": ("q", "k")},
        {"equivalent": ("qkvo",)},
    ),
)


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    row = choice["row"]
    method = "lora" if row in CHOICES else row
    config = against_lora.config_of({**choice, "row": method})
    config.update({"experiment": "lora_table5", "study": {"table": "lora_table5", "row": row}})
    if row in CHOICES:
        _, rank, pattern = CHOICES[row]
        config.update({"variant": {"rank": rank, "alpha": 2.0 * rank}})
        config.update({"targets": (f"{pattern}/kernel",)})
    return config
