"""A small ViT or ConvNet on Fashion-MNIST: pretrained on five classes, adapted to the other five.

    python -m experiments.train --config=configs/images.py:stage=pretrain --workdir=runs/images/base
    python -m experiments.export --run=runs/images/base --as=merged --out=runs/images/weights
    python -m experiments.sweep --config=configs/images.py:weights=runs/images/weights \\
        --workdir=runs/images/methods --sweep=config.variant.name=lora,dora,vera,full
    python -m experiments.report --results=runs/images/methods --out=runs/images/report.html

Debian's package dataset-fashion-mnist brings the images (31 MB). `:model=convnet` is the ConvNet,
whose convolutions are adapted, too. `:source=images,train=FOLDER` takes your own images, a folder
for each class, and `:source=npz,train=FILE,validation=FILE` any arrays with labels; `held_out`
holds out examples of train for validation. Your own model is `--config.model.name=`, the dotted
name of a function (`experiments.setup.own_model`).
"""

from ml_collections import ConfigDict, config_dict

from configs import common

ARGUMENTS = {
    "stage": ("adapt", "pretrain"),
    "model": ("vit", "convnet"),
    "weights": "",
    "source": ("idx", "images", "npz"),
    "folder": "",
    "train": "",
    "validation": "",
    "held_out": 0,
    "examples": 0,
    "draw": 0,
    "variant": "lora",
    "size": ("full", "smoke"),
    "seed": 0,
}
FIRST = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
OTHERS = ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
EXAMPLES = 500
"""How many examples the adaptation has, of 30,000: so that methods differ."""


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    fashion, first = choice["source"] == "idx", choice["stage"] == "pretrain"
    variant = "full" if first else choice["variant"]
    smoke, epochs = choice["size"] == "smoke", 3 if first else 20
    few = EXAMPLES if fashion and not first else 0
    head = "head(/.*)?"
    return ConfigDict(
        {
            "experiment": "images",
            "seed": choice["seed"],
            **({"study": {"size": "smoke"}} if smoke else {}),  # marks its record
            "model": common.own_model(
                f"experiments.setup.image_models.{choice['model']}",
                weights=choice["weights"],
                fresh=(head,) if choice["weights"] else (),
            ),
            "data": common.arrays(
                "fashion_mnist" if fashion else "own",
                source=choice["source"],
                folder=choice["folder"] or None,
                files={key: choice[key] for key in ("train", "validation")},
                validation=64 if smoke else choice["held_out"],
                train=64 if smoke else choice["examples"] or few,
                draw=choice["draw"],
                classes=(FIRST if first else OTHERS) if fashion else (),
            ),
            "variant": common.variant(variant),
            "targets": (),
            "suggested": common.suggested("small", ("all-linear+conv",)),
            "also_train": () if variant == "full" else (head,),
            "quantize": common.quantize(),
            "start_from": config_dict.placeholder(str),
            "optimizer": common.optimizer(2e-3 if first else None),
            "train": common.train(
                batch_size=8 if smoke else 128 if first else 32,
                epochs=1 if smoke else epochs,
                max_steps=4 if smoke else 0,
                log_every=2 if smoke else 20,
                evaluations=2 if smoke else 3 if first else 1,
                checkpoint_every=2 if smoke else 100,
            ),
        }
    )
