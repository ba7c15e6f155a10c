"""The common part of configs for decoders: models, targets, and a run from a recipe.

A recipe holds a paper's hyperparameters for one run: a dict with `batch_size`, `epochs`,
`learning_rate` and any other keys of `RECIPE` whose values differ (see `configs.common_tasks` for
encoders).
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from configs import common
from configs.common_tasks import OPTIMIZER

MODELS = {
    "smollm2": "smollm2",
    "gpt2_medium": "openai-community/gpt2-medium",
    "gpt2_large": "openai-community/gpt2-large",
    "llama_7b": "huggyllama/llama-7b",
    "llama_13b": "huggyllama/llama-13b",
    "llama_2_7b": "meta-llama/Llama-2-7b-hf",
    "llama_2_13b": "meta-llama/Llama-2-13b-hf",
    "llama_2_70b": "meta-llama/Llama-2-70b-hf",
    "llama_3_8b": "meta-llama/Meta-Llama-3-8B",
    "llama_3_70b": "meta-llama/Meta-Llama-3-70B",
    "mistral_7b": "mistralai/Mistral-7B-v0.1",
}
"""Names on the Hub. Access to Meta's weights must be requested; a local folder works too."""

COMMONSENSE = {
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "social_i_qa": "SIQA",
    "hellaswag": "HellaSwag",
    "winogrande": "WinoGrande",
    "ARC-Easy": "ARC-e",
    "ARC-Challenge": "ARC-c",
    "openbookqa": "OBQA",
}
"""The eight sets of commonsense questions, and their names in tables."""

QUERY_VALUE = ("attention/(query|value)/kernel",)
SEVEN_LINEARS = ("attention/(query|key|value|output)/kernel", "(gate|up|down)/kernel")
"""All linear layers of a LLaMA except its head, which papers do not adapt."""

RECIPE = {
    "schedule": "linear",
    "warmup_ratio": 0.0,
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "clip": 1.0,
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "dtype": "float32",
    "remat": "",
    "max_length": 512,
    "accumulate": 1,
    "max_steps": 0,
    "label_smoothing": 0.0,
    "train": 0,
    "validation": 0,
    "scored": 0,
    "select": "last",
}
"""Optimiser and clipping are those of Hugging Face's trainer; the rest has neutral values."""

NO_CLIP = 1e9
"""A clipping norm larger than any gradient's, for recipes without clipping."""

LAPTOP_EXAMPLES = 2000
"""The number of examples of each task that SmolLM2 trains on."""


def arguments(**own: Any) -> dict[str, Any]:
    """The arguments of a config: its own, and those of all these configs."""
    return {**own, "size": ("full", "smoke"), "folder": "", "seed": 0}


def laptop(learning_rate: float, **changes: Any) -> dict[str, Any]:
    """The recipe of every table for SmolLM2: one epoch over a few examples."""
    own = {"batch_size": 8, "epochs": 1, "learning_rate": learning_rate, "schedule": "cosine"}
    few = {"train": LAPTOP_EXAMPLES, "warmup_ratio": 0.06, "scored": 200}
    return {**own, **few, **changes}


def experiment(
    name: str,
    choice: Mapping[str, Any],
    recipe: Mapping[str, Any],
    *,
    row: str,
    column: str,
    variant: ConfigDict,
    targets: tuple[str, ...] = (),
    task: str,
    source: str,
    file: str = "",
    generate: Mapping[str, Any] | None = None,
    storage: str = "none",
) -> ConfigDict:
    """The config of one decoder run, from `choice` and a recipe, with the run's place in a table.

    Args:
      targets: without any, a run takes those and the size that its variant suggests.
      column: the name of the run's place; one run may fill several columns of a table.
      task, source, file: for `lora_jax.data.load_text_task`; `file` is `alpaca`'s training file.
      generate: settings for the generated texts and their scores (`common.generate`).
    """
    model, smoke, tiny = choice["model"], choice["size"] == "smoke", common.needs_nothing(choice)
    recipe = {**RECIPE, **recipe}
    written = {"samples": 3, "scored": 0, **(generate or {})}
    if smoke:
        recipe |= {"warmup_steps": 0, "batch_size": 4, "accumulate": 1, "epochs": 1, "max_steps": 4}
        recipe |= {"train": 16, "validation": min(recipe["validation"], 8), "scored": 8}
        beams = min(written.get("beams", 1), 2)
        written |= {"samples": 1, "max_new_tokens": 8, "beams": beams, "batch_size": 4}
        written["scored"] = 4 if written["scored"] else 0
    return ConfigDict(
        {
            "experiment": name,
            "seed": choice["seed"],
            "study": {
                "table": name,
                "row": row,
                "column": column,
                "model": model,
                "size": choice["size"],
            },
            # LLaMA has no dropout, and the papers' code does not use GPT-2's.
            "model": common.decoder(
                **(common.tiny(model) if tiny else {"name": MODELS[model]}),
                dtype=recipe["dtype"],
                remat=recipe["remat"],
                dropout=False,
            ),
            "data": common.texts(
                task,
                source="demo" if tiny else source,
                folder=choice["folder"] or None,
                files={"train": file, "validation": ""},
                validation=recipe["validation"],
                train=recipe["train"],
                scored=recipe["scored"],
                max_length=recipe["max_length"],
                buckets=1 if tiny else 2 if smoke else 4,
            ),
            "variant": variant,
            "targets": targets,
            "suggested": common.suggested("large", SEVEN_LINEARS, size=not targets),
            "also_train": (),
            "quantize": common.quantize(storage, SEVEN_LINEARS),
            "start_from": config_dict.placeholder(str),
            "optimizer": common.optimizer(
                recipe["learning_rate"], **{key: recipe[key] for key in OPTIMIZER}
            ),
            "train": common.train(
                batch_size=recipe["batch_size"],
                accumulate=recipe["accumulate"],
                epochs=recipe["epochs"],
                max_steps=recipe["max_steps"],
                label_smoothing=recipe["label_smoothing"],
                log_every=2 if smoke else 10,
                evaluations=2 if smoke else recipe["epochs"],
                checkpoint_every=2 if smoke else 50 if model == "smollm2" else 500,
                select=recipe["select"],
            ),
            "generate": common.generate(**written),
        }
    )
