"""LoRA on a real sentence encoder and real movie reviews, in minutes on two CPU cores.

    python -m experiments.train --config=configs/quickstart.py --workdir=runs/lora
    python -m experiments.train --config=configs/quickstart.py:variant=dora --workdir=runs/dora

all-MiniLM-L6-v2 (22.7 M parameters) learns to tell positive from negative Rotten Tomatoes
sentences: 7,500 to train on, 1,030 to validate. `:variant=` takes the name of any file of
`variants/`, or your own (`my_package.my_variant`), which suggests the learning rate and the size.
`:storage=nf4` stores the frozen matrices quantised (QLoRA), and `:size=smoke` makes a run of
seconds.
"""

from ml_collections import ConfigDict, config_dict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.parse_arg(arg, variant="lora", size="full", storage="none")
    variant, size = choice["variant"], choice["size"]
    if size not in ("full", "smoke"):
        raise ValueError(f"size '{size}': expected full or smoke")
    smoke = size == "smoke"
    return ConfigDict(
        {
            "experiment": "quickstart",
            "seed": 0,
            **({"study": {"size": size}} if smoke else {}),  # marks its record
            "model": common.model("minilm", pool="mean", dropout=False),
            "data": common.data(
                "rotten_tomatoes",
                source="demo",
                validation=1030,
                train=256 if smoke else 0,
            ),
            "variant": common.variant(variant),
            # patterns, or (pattern, settings of the variant for it)
            "targets": (),
            "suggested": common.suggested("small", ("all-linear",)),
            "also_train": () if variant == "full" else ("classifier/.*",),
            "quantize": common.quantize(choice["storage"]),
            "start_from": config_dict.placeholder(str),
            "optimizer": common.optimizer(None),
            "train": common.train(
                epochs=1,
                log_every=2 if smoke else 10,
                checkpoint_every=4 if smoke else 50,
            ),
        }
    )
