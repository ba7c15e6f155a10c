"""Runs of a small decoder on questions: their configs, and the scores of their options."""

import jax
import jax.numpy as jnp
import numpy as np

import lora_jax as lj
from configs import instruct
from experiments.setup.config import parse
from lora_jax import data
from lora_jax.data import encode_options
from lora_jax.models.published.load import load_decoder


def config(places, method="lora", **changes):
    """The settings of an instruct run of the small model; `a__b` stands for the setting a.b."""
    arg = f"method={method},source=commonsense,folder={places / 'sets'},task=openbookqa,train=0"
    made = instruct.get_config(arg)
    small = {"variant.rank": 4}  # heads share keys of 8 numbers
    small |= {"targets": ("query/kernel", "down/kernel")}  # which take less to compile
    small = {} if method == "full" else small
    made.update_from_flattened_dict(
        {
            **small,
            "model.name": str(places / "model"),
            "data.scored": 0,
            "data.buckets": 1,
            "train.max_steps": 4,
            "train.log_every": 1,
            "optimizer.learning_rate": 1e-2,
            "generate.samples": 2,
            "generate.max_new_tokens": 6,
            **{name.replace("__", "."): value for name, value in changes.items()},
        }
    )
    return parse(made.to_dict())


def own_scores(experiment, trainable, name, limit=256):
    """The log-likelihoods of a part's options, each from the whole logits of a row of its own."""
    params = experiment.adapted.merge(trainable, experiment.frozen)
    forward, _ = lj.from_nnx(load_decoder(experiment.config.model.name))
    parts = {"validation": experiment.texts.task.validation, **experiment.texts.task.extra}
    rows, offsets = encode_options(experiment.texts.tokenizer, parts[name], limit)
    longest = int(rows.lengths.max())
    batch = data.collate(rows, np.arange(len(rows)), longest, len(rows))

    @jax.jit
    def of_rows(params, ids, learned):
        return (followed(forward(params, ids)[:, :-1], ids[:, 1:]) * learned[:, 1:]).sum(axis=1)

    found = of_rows(params, batch["input_ids"], batch["token_type_ids"])
    return data.option_outputs(np.asarray(found), offsets)


def followed(logits, ids):
    """The log-probabilities of tokens."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]
