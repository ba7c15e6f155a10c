"""Small transformers models beside ours, and PEFT folders that one side writes and the other reads.

Needs torch, transformers and PEFT.
"""

import contextlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch
from make_fixtures import bert, deberta, decoders

import lora_jax as lj
import variants
from lora_jax.interchange.names import names_of
from lora_jax.models.published.load import load_classifier, load_decoder

SEED = 3
_ENCODER = {
    **{"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 12, "max_position_embeddings": 24, "type_vocab_size": 2},
}
MODELS = {
    "bert": {**_ENCODER, "model_type": "bert", "pad_token_id": 0},
    "roberta": {**_ENCODER, "model_type": "roberta", "pad_token_id": 1},
    "deberta_v2": deberta.CASES["v2"][0],
    "deberta_v3": deberta.CASES["v3"][0],
    "llama": decoders.CASES["llama"],
    "llama_tied": decoders.CASES["llama_biases"],
    "mistral": decoders.CASES["mistral"],
    "qwen2": decoders.CASES["qwen2"],
    "qwen3": decoders.CASES["qwen3"],
    "gpt2": decoders.CASES["gpt2"],
}


class Both:
    """One model on both sides, of the same weights."""

    def __init__(self, fresh, forward, params, names, inputs, dtype=torch.float64, size=0.3):
        """
        Args:
          fresh: makes the torch model, without an adapter.
          forward, params: ours, with `names` for its parameters and `inputs` for both models.
          dtype: of torch's model and its adapters.
          size: of what is added to factors.
        """
        self.fresh, self.forward, self.params = fresh, forward, params
        self.names, self.inputs = names, inputs
        self.dtype, self.size = dtype, size

    def theirs(self, model):
        """What a torch model computes of the inputs."""
        names = ("input_ids", "attention_mask", "token_type_ids")
        given = {
            n: torch.tensor(np.array(x)).long() for n, x in zip(names, self.inputs, strict=False)
        }
        exact = decoders.exactly() if self.dtype == torch.float64 else contextlib.nullcontext()
        with torch.no_grad(), exact:
            return model.to(self.dtype).eval()(**given)[0].numpy()

    def loaded_by_peft(self, folder):
        """What PEFT computes with a folder, with every number of the file as it is there."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.PeftModel.from_pretrained(self.fresh(), str(folder)).to(self.dtype)
            weights = peft.load_peft_weights(str(folder))
            result = peft.set_peft_model_state_dict(model, weights)
        assert not result.unexpected_keys, result.unexpected_keys
        return self.theirs(model)

    def written_by_peft(self, folder, config, seed=0, **options):
        """Write a folder by PEFT, with random factors; what the model computes there.

        Args:
          config: of PEFT; options: of its `save_pretrained`.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = isinstance(config.get("init_lora_weights"), str)  # in float32 alone
            base = self.fresh().float() if start else self.fresh()
            model = peft.get_peft_model(base, peft.get_peft_config(config)).to(self.dtype)
            random = np.random.RandomState(seed)
            for name, parameter in model.named_parameters():
                # AdaLoRA's `ranknum` asks for gradients, too, and is not saved.
                if parameter.requires_grad and "ranknum" not in name:
                    draw = self.size * random.standard_normal(parameter.shape)
                    value = parameter.detach() + torch.tensor(draw)
                    parameter.data = value.to(self.dtype)
            model.save_pretrained(str(folder), **options)
        return self.theirs(model)

    def ours_from(self, folder):
        """What our model computes with a folder."""
        loaded = lj.load_peft(
            folder, variants.from_peft, self.names, self.forward, self.params, *self.inputs
        )
        return self.outputs(*loaded[:3]), loaded

    def outputs(self, adapted, trainable, frozen):
        return np.asarray(adapted.apply(trainable, frozen, *self.inputs))

    def plain(self):
        return np.asarray(self.forward(self.params, *self.inputs))


class Pair(Both):
    """A small model of random weights, in float64, from a config."""

    def __init__(self, config, folder):
        encoder = config["model_type"] in ("bert", "roberta", "deberta-v2")
        made = _random_model(config)
        tensors = {n: p.detach().numpy() for n, p in made.named_parameters()}
        bert.save_checkpoint(folder, config, tensors)
        if encoder:
            options = {"num_labels": 3, "pool": "cls", "param_dtype": jnp.float64}
            ours = load_classifier(folder, key=jax.random.key(0), **options).model
            inputs = deberta.deberta_inputs(config, SEED, tokens=9)
            begun = inputs[1][:, 0] == 1  # what DeBERTa pools of padding is nobody's
            inputs = tuple(jnp.asarray(each[begun]) for each in inputs)
        else:
            ours = load_decoder(folder, param_dtype=jnp.float64)
            ids, mask, _ = decoders.random_inputs(config, SEED)
            inputs = jnp.asarray(ids), jnp.ones_like(mask)
        names = names_of(ours.config)
        super().__init__(lambda: _random_model(config), *lj.from_nnx(ours), names, inputs)


def _random_model(config):
    if config["model_type"] == "deberta-v2":
        return deberta.torch_random_deberta(config, 3, SEED)[0]
    if config["model_type"] in ("bert", "roberta"):
        return bert.torch_random(config, 3, SEED)[0]
    return decoders.torch_random(config, SEED)[0]


def moved(trainable, seed=0, size=0.3):
    """Trainables away from their start."""
    random = np.random.RandomState(seed)
    return jax.tree.map(
        lambda x: x + size * jnp.asarray(random.standard_normal(x.shape), x.dtype), trainable
    )
