"""The common part of configs on GLUE and SuperGLUE: tasks, models, and a run from a recipe.

A recipe holds a paper's hyperparameters for one task: a dict with `batch_size`, `epochs`,
`learning_rate`, `max_length` and any other keys of `RECIPE` whose values differ.
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

METHODS = {
    "head_only": "head only",
    "bitfit": "BitFit",
    "full": "full fine-tuning",
    "lora": "LoRA",
    "rslora": "rsLoRA",
    "lora_plus": "LoRA+",
    "lora_fa": "LoRA-FA",
    "dora": "DoRA",
    "adalora": "AdaLoRA",
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "vera": "VeRA",
    "ia3": "IA3",
    "hira": "HiRA",
    "miss": "MiSS",
    "loha": "LoHa",
    "lokr": "LoKr",
    "oft": "OFT",
    "lora_xs": "LoRA-XS",
    "fourierft": "FourierFT",
    "hra": "HRA",
    "randlora": "RandLoRA",
    "shira": "SHiRA",
    "delora": "DeLoRA",
}
"""The names of variants in tables, baselines first."""

OWN_SETTINGS = ("oft", "fourierft", "hra", "randlora", "shira", "delora")
"""Methods that keep their own settings, as their size and scale are not those of LoRA."""

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

QUERY_VALUE = ("(query|value)/kernel",)
SIX_LINEARS = ("(query|key|value|output)/kernel", "(up|down)/kernel")
IA3_TARGETS = ("(key|value)/kernel", ("down/kernel", {"scales": "inputs"}))

RECIPE = {
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
"""Mostly the defaults of Hugging Face's trainer, which the papers' scripts keep."""
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

LAPTOP_EXAMPLES = {"mnli": 8000, "ax": 8000, "sst2": 8000, "qnli": 8000, "qqp": 8000}
"""How many examples of large tasks all-MiniLM-L6-v2 trains on: minutes an epoch on two cores."""

LARGE_MODEL_RATES = {"full": 2e-5, "bitfit": 1e-3, "head_only": 1e-3, "vera": 1e-2, "pissa": 1e-4}


def arguments(**own: Any) -> dict[str, Any]:
    """The arguments of a config: its own, and those of all these configs."""
    common_ones = {"size": ("full", "smoke"), "source": ("tfds", "tsv"), "folder": "", "seed": 0}
    return {**own, **common_ones}


def laptop(variant: str, **changes: Any) -> dict[str, Any]:
    """The recipe of every task for all-MiniLM-L6-v2: three epochs; the last adapter is kept."""
    rate = common.LEARNING_RATES.get(variant, common.OTHER_LEARNING_RATE)
    own = {"batch_size": 32, "epochs": 3, "learning_rate": rate, "max_length": 128}
    return {**own, "select": "last", **changes}


def starting_point(model: str, variant: str, **changes: Any) -> dict[str, Any]:
    """A recipe if no paper has one; for models other than minilm, an untuned starting point."""
    if model == "minilm":
        return laptop(variant, **changes)
    rate = LARGE_MODEL_RATES.get(variant, 4e-4)
    return laptop(variant, **{"learning_rate": rate, "select": "best", **changes})


def variant_settings(name: str, size: str) -> dict[str, Any]:
    """A variant's settings if no paper gives them; other settings keep the variant's defaults."""
    if name == "adalora":  # the penalty of the authors' code, which published gammas are for
        few = {"t_init": 1, "t_final": 1} if size == "smoke" else {}
        return {"mode": "reference", "rank": 12, "target_rank": 8, "alpha": 16.0, **few}
    if name == "fourierft" and size == "smoke":  # its matrices have fewer entries than usual
        return {"frequencies": 64}
    if name in ("full", "bitfit", "head_only", "vera", "ia3", "miss") or name in OWN_SETTINGS:
        return {}
    return {"rank": 8, "alpha": 16.0}


def data_name(task: str) -> str:
    """A task's name in the data; both benchmarks have an RTE, and `rte` is GLUE's."""
    return f"super_glue/{task.removeprefix('super_')}" if task in SUPER_GLUE else f"glue/{task}"


def experiment(
    name: str,
    choice: Mapping[str, Any],
    recipe: Mapping[str, Any],
    *,
    row: str,
    variant: ConfigDict,
    targets: tuple[Any, ...],
    column: str = "",
    storage: str = "none",
    also_train: tuple[str, ...] | None = None,
) -> ConfigDict:
    """The config of one run, from `choice` and a recipe, with the run's place in a table."""
    task, model, smoke = choice["task"], choice["model"], choice["size"] == "smoke"
    recipe = {**RECIPE, **recipe, **({"warmup_steps": 0} if smoke else {})}
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
                "row": row,
                "column": column or task,
                "model": model,
                "size": choice["size"],
            },
            "model": common.model(
                MODELS[model],
                pool="mean" if small else "cls",
                dtype=recipe["dtype"],
                dropout=not small,
                head_dropout=recipe["head_dropout"],
            ),
            "data": common.data(
                data_name(task),
                source=choice["source"],
                folder=choice["folder"] or None,
                train=64 if smoke else LAPTOP_EXAMPLES.get(task, 0) if small else 0,
                max_length=min(32, recipe["max_length"]) if smoke else recipe["max_length"],
                buckets=2 if smoke else 6,
            ),
            "variant": variant,
            "targets": targets,
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
        data that our numbers are for.
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
    }
    return {**defaults, "title": title, "columns": tuple(columns), **settings}
