"""The common part of configs on GLUE and SuperGLUE: tasks, models, and a run from a recipe.

A recipe holds a paper's hyperparameters for one task: a dict with `batch_size`, `epochs`,
`max_length` and any other keys of `RECIPE` whose values differ, such as `learning_rate`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from configs import common

GLUE = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
"""The eight tasks that papers report, in the order of LoRA's Table 2; WNLI is the ninth."""
SUPER_GLUE = ("boolq", "cb", "copa", "wic", "super_rte")

METRICS = {"cola": "matthews", "stsb": "pearson"}
"""The main metric of a task, by default accuracy. A paper may report another one."""
TITLES = {
    "mnli": "MNLI",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "cola": "CoLA",
    "qnli": "QNLI",
    "qqp": "QQP",
    "rte": "RTE",
    "stsb": "STS-B",
    "wnli": "WNLI",
    "ax": "MNLI for AX",
    "boolq": "BoolQ",
    "cb": "CB",
    "copa": "COPA",
    "wic": "WiC",
    "super_rte": "RTE (SuperGLUE)",
    "wikisql": "WikiSQL",  # this and the next two are only in published tables
    "e2e": "E2E",
    "nlg": "NLG",
}

MODELS = {
    "minilm": "minilm",
    "roberta_base": "FacebookAI/roberta-base",
    "roberta_large": "FacebookAI/roberta-large",
    "deberta_v2_xxl": "microsoft/deberta-v2-xxlarge",
    "deberta_v3_base": "microsoft/deberta-v3-base",
}
LAYERS = {
    "minilm": 6,
    "roberta_base": 12,
    "roberta_large": 24,
    "deberta_v2_xxl": 48,
    "deberta_v3_base": 12,
}

STORAGES = {"nf4": "NF4", "nf4_double": "NF4 + DQ", "int8": "Int8"}
"""How frozen weights may be stored, and the names of that in tables."""

QUERY_VALUE = ("(query|value)/kernel",)
SIX_LINEARS = ("(query|key|value|output)/kernel", "(up|down)/kernel")

RECIPE = {
    "learning_rate": None,
    "rate": "small",
    "schedule": "linear",
    "warmup_ratio": 0.06,
    "warmup_steps": 0,
    "weight_decay": 0.01,
    "clip": 1.0,
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "head_learning_rate": None,
    "head_dropout": None,
    "dtype": "float32",
    "select": "best",
}
"""Mostly the defaults of Hugging Face's trainer, which the papers' scripts keep.

Without a learning rate, a run has the one that its variant suggests, of this `rate`.
"""
OPTIMIZER = (
    "schedule",
    "warmup_ratio",
    "warmup_steps",
    "weight_decay",
    "clip",
    "b1",
    "b2",
    "eps",
)
"""The keys of a recipe that are settings of the optimiser, besides learning rates."""

TINY_LAYERS = 4
"""The number of layers of a tiny model (`lora_jax.models.published.tiny_models`)."""

LAPTOP_EXAMPLES = {"mnli": 8000, "ax": 8000, "sst2": 8000, "qnli": 8000, "qqp": 8000}
"""How many examples of large tasks all-MiniLM-L6-v2 trains on: minutes an epoch on two cores."""


def arguments(**own: Any) -> dict[str, Any]:
    """The arguments of a config: its own, and those of all these configs."""
    common_ones = {"size": ("full", "smoke"), "folder": "", "seed": 0}
    return {**own, **common_ones, "source": ("tfds", "tsv", "demo")}


def laptop(**changes: Any) -> dict[str, Any]:
    """The recipe of every task for all-MiniLM-L6-v2: three epochs; the last adapter is kept."""
    return {"batch_size": 32, "epochs": 3, "max_length": 128, "select": "last", **changes}


def starting_point(model: str, **changes: Any) -> dict[str, Any]:
    """A recipe if no paper has one; for models other than minilm, an untuned starting point."""
    if model == "minilm":
        return laptop(**changes)
    return laptop(**{"rate": "large", "select": "best", **changes})


def stored(row: str) -> tuple[str, str]:
    """The variant and the storage of its base that a row of methods is named by: `lora_nf4`."""
    for storage in STORAGES:
        if row.endswith(f"_{storage}"):
            return row.removesuffix(f"_{storage}"), storage
    return row, "none"


def data_name(task: str) -> str:
    """A task's name in the data; both benchmarks have an RTE, and `rte` is GLUE's."""
    return f"super_glue/{task.removeprefix('super_')}" if task in SUPER_GLUE else f"glue/{task}"


def experiment(
    name: str,
    choice: Mapping[str, Any],
    recipe: Mapping[str, Any],
    *,
    variant: ConfigDict,
    row: str = "",
    targets: tuple[Any, ...] = (),
    column: str = "",
    storage: str = "none",
    also_train: tuple[str, ...] | None = None,
) -> ConfigDict:
    """The config of one run, from `choice` and a recipe, with the run's place in a table.

    Without targets, a run takes those and the size that its variant suggests. Without a row, it is
    in that of its variant and storage (`stored`).
    """
    task, model, smoke = choice["task"], choice["model"], choice["size"] == "smoke"
    recipe = {**RECIPE, **recipe, **({"warmup_steps": 0} if smoke else {})}
    tiny = common.needs_nothing(choice)
    small = model == "minilm"
    head = ("classifier/.*",) if small else ("classifier/.*", "pooler/.*")
    if variant.name == "full":  # it already trains everything
        also_train = ()
    return ConfigDict(
        {
            "experiment": name,
            "seed": choice["seed"],
            "study": {
                "table": name,
                "row": row or config_dict.placeholder(str),
                "column": column or task,
                "model": model,
                "size": choice["size"],
            },
            "model": common.model(
                **(common.tiny(model) if tiny else {"name": MODELS[model]}),
                pool="mean" if small else "cls",
                dtype=recipe["dtype"],
                dropout=not small,
                head_dropout=recipe["head_dropout"],
            ),
            "data": common.data(
                data_name(task),
                source="demo" if tiny else choice["source"],
                folder=choice["folder"] or None,
                train=64 if smoke else LAPTOP_EXAMPLES.get(task, 0) if small else 0,
                max_length=min(32, recipe["max_length"]) if smoke else recipe["max_length"],
                buckets=1 if tiny else 2 if smoke else 6,
            ),
            "variant": variant,
            "targets": targets,
            "suggested": common.suggested(recipe["rate"], SIX_LINEARS, size=not targets),
            "also_train": head if also_train is None else also_train,
            "quantize": common.quantize(storage),
            "start_from": choice.get("start_from") or config_dict.placeholder(str),
            "optimizer": common.optimizer(
                recipe["learning_rate"],
                **{key: recipe[key] for key in OPTIMIZER},
                head_learning_rate=recipe["head_learning_rate"],
            ),
            "train": common.train(
                batch_size=8 if smoke else recipe["batch_size"],
                epochs=1 if smoke else recipe["epochs"],
                max_steps=4 if smoke else 0,
                log_every=2 if smoke else 10 if small else 50,
                evaluations=2 if smoke else recipe["epochs"],
                checkpoint_every=2 if smoke else 50 if small else 500,
                select=recipe["select"],
            ),
        }
    )


def column(task: str, metric: str = "") -> tuple[str, str, str]:
    """A column of a table: its heading, the task and its metric, by default the main one."""
    metric = metric or METRICS.get(task, "accuracy")
    short = {"accuracy_mismatched": "mm", "f1": "F1"}.get(metric, "")
    return f"{TITLES.get(task, task)} {short}".strip(), task, metric


def table(
    title: str,
    tasks: tuple[str, ...] = (),
    metrics: Mapping[str, tuple[str, ...]] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Settings with which `experiments.table` shows the runs of a config, as plain data.

    Args:
      tasks: the columns; if empty, those of the records.
      metrics: a task's metrics, if not its main one. Several metrics make several columns; their
        mean counts once in the average.
      settings: `published`, the (paper, table) whose numbers are shown beside ours; `rows`, the
        name of each row that runs with every model; `models`, whose blocks are always shown, even
        with nothing published or run, and then with the columns `unrun`; `seeds`, how many the
        protocol requires; `report`, their `median` or `mean`; `spread`, `sd` or `ci95`; `choose`,
        each run's `best` or `last` evaluation; `average`, whether to show one; `start_from`, for
        each row the tasks that start from another run's adapter; `differences`, extra columns that
        subtract one (column, metric) from another, seed by seed; `decimals`; `notes`; `columns`,
        made by `column`, which replace those of `tasks`; `printed`, such columns for numbers that
        are only published, because our runs do not have their metric; `scored_on`, the part of the
        data that our numbers are for; `varies`, settings in which its methods differ, besides those
        that reports let differ in any case; `questions`, each with the rows that answer it, in
        their order, and what they are called there: a study's report has a figure for each;
      `controls`, rows that check the study itself and are not counted as methods; `checks`, how
      reports check each claim of the study (`experiments.reports.claims`), in their order.
    """
    chosen = {task: (METRICS.get(task, "accuracy"),) for task in tasks} | dict(metrics or {})
    columns = [column(task, metric) for task in tasks for metric in chosen[task]]
    defaults = {
        "published": None,
        "rows": {},
        "models": (),
        "unrun": (),
        "seeds": 3,
        "report": "mean",
        "spread": "sd",
        "choose": "last",
        "average": bool(tasks),
        "start_from": {},
        "differences": (),
        "decimals": 1,
        "notes": (),
        "printed": (),
        "scored_on": "the development set",
        "varies": (),
        "questions": {},
        "controls": (),
        "checks": (),
    }
    return {**defaults, "title": title, "columns": tuple(columns), **settings}
