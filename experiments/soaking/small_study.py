"""A study of two methods on a tiny model, for the soak: two rates, one seed each."""

from ml_collections import ConfigDict

from configs import common, own_data
from experiments.soaking.inputs import SETTINGS

STUDY = {
    "rows": ("lora", "head_only"),
    "columns": ("own",),
    "reference": "lora",
    "rates": {"per_decade": 2, "around": 1, "most_more": 0},
    "tuning": {"held_out": 16, "seeds": (100,)},
    "seeds": (0, 1),
    "margin": 1.0,
}


def get_config(arg: str | None = None) -> ConfigDict:
    given = {"train": "", "validation": "", "model": "", "row": "lora", "task": "own"}
    choice = common.parse_arg(arg, **given)
    files = f"train={choice['train']},validation={choice['validation']}"
    config = own_data.get_config(f"{files},variant={choice['row']},size=smoke")
    known = {name: value for name, value in SETTINGS.items() if name != "variant.rank"}
    config.update_from_flattened_dict({**known, "model.name": choice["model"]})
    config.update({"suggested": {"rate": "tried"}, "optimizer": {"learning_rate": None}})
    config.update({"train": {"epochs": 1, "max_steps": 0, "evaluate_every": 0}})
    cell = {"table": "small_study", "column": choice["task"], "row": choice["row"]}
    config.update({"study": {**cell, "size": "smoke"}})
    return config
