"""Your own data set: TSV, CSV or JSONL with named columns; classes or numbers, texts or pairs.

    python -m experiments.train \\
        --config=configs/own_data.py:train=reviews.csv,held_out=500,text=review,label=stars \\
        --workdir=runs/own_data/lora/0
    python -m experiments.table --table=own_data --results=runs/own_data

`train` is a file. `validation` is another file; `held_out` instead holds out this many examples of
train. `second_text` is the column of a pair's second text. `test` is a file without labels that
gets predictions (`predictions.npz`). `examples` and `draw` choose a few of the training examples.
Labels with fractions make a regression; `regression=yes` makes one of whole numbers too. `extra` is
a file of another domain with the same columns and classes; its metrics end in `_extra`. To see gain
and forgetting, train on one domain, then start from there (`start_from`) with the two files
swapped. Give a path that contains a comma with `--config.data.files.train=`.
"""

from ml_collections import ConfigDict

from configs import common, common_tasks

PARTS = ("train", "validation", "extra", "test")
COLUMNS = ("text", "second_text", "label")
ARGUMENTS = {
    **dict.fromkeys(PARTS, ""),
    **{"text": "text", "second_text": "", "label": "label"},
    "regression": ("no", "yes"),
    "name": "own",
    "folder": "",
    "held_out": 0,
    "examples": 0,
    "draw": 0,
    "variant": "lora",
    "model": tuple(common_tasks.MODELS),
    "start_from": "",
    "size": ("full", "smoke"),
    "seed": 0,
}
TABLE = common_tasks.table("Own data", spread="ci95")


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    if choice["validation"] and choice["held_out"]:
        raise ValueError("validation is a file, and held_out takes its place: give one of them")
    config = common_tasks.experiment(
        "own_data",
        {**choice, "task": choice["name"], "source": "files"},
        common_tasks.starting_point(choice["model"]),
        variant=common.variant(choice["variant"]),
    )
    files = {key: choice[key] for key in (*PARTS, *COLUMNS)}
    files["regression"] = choice["regression"] == "yes"
    own = {"name": choice["name"], "files": files, "validation": choice["held_out"]}
    config.update({"data": {**own, "train": choice["examples"], "draw": choice["draw"]}})
    return config
