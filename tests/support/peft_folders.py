"""Small transformers models beside ours, and PEFT folders that one side writes and the other reads.

Needs torch, transformers and PEFT.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch
from make_fixtures import bert, deberta, decoders

import lora_jax as lj
import variants
from lora_jax.interchange.families import names_of
from lora_jax.models.published.decoders import load_decoder
from lora_jax.models.published.encoders import load_classifier

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


class Pair:
    """One model on both sides, of the same random weights, in float64."""

    def __init__(self, config, folder):
        self.config, self.folder = config, folder
        self.encoder = config["model_type"] in ("bert", "roberta", "deberta-v2")
        made = self.fresh()
        tensors = {n: p.detach().numpy() for n, p in made.named_parameters()}
        bert.save_checkpoint(folder, config, tensors)
        if self.encoder:
            options = {"num_labels": 3, "pool": "cls", "param_dtype": jnp.float64}
            self.ours = load_classifier(folder, key=jax.random.key(0), **options).model
            inputs = deberta.deberta_inputs(config, SEED, tokens=9)
            begun = inputs[1][:, 0] == 1  # what DeBERTa pools of padding is nobody's
            self.inputs = tuple(jnp.asarray(each[begun]) for each in inputs)
        else:
            self.ours = load_decoder(folder, param_dtype=jnp.float64)
            ids, mask, _ = decoders.random_inputs(config, SEED)
            self.inputs = jnp.asarray(ids), jnp.ones_like(mask)
        self.forward, self.params = lj.from_nnx(self.ours)
        self.names = names_of(self.ours.config)

    def fresh(self):
        """The torch model without an adapter."""
        if self.config["model_type"] == "deberta-v2":
            return deberta.torch_random_deberta(self.config, 3, SEED)[0]
        if self.encoder:
            return bert.torch_random(self.config, 3, SEED)[0]
        return decoders.torch_random(self.config, SEED)[0]

    def theirs(self, model):
        """What a torch model computes of the inputs."""
        names = ("input_ids", "attention_mask", "token_type_ids")
        given = {
            n: torch.tensor(np.array(x)).long() for n, x in zip(names, self.inputs, strict=False)
        }
        with torch.no_grad(), decoders.exactly():
            return model.double().eval()(**given).logits.numpy()

    def loaded_by_peft(self, folder):
        """What PEFT computes with a folder, with every number of the file as it is there."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.PeftModel.from_pretrained(self.fresh(), str(folder)).double()
            weights = peft.load_peft_weights(str(folder))
            result = peft.set_peft_model_state_dict(model, weights)
        assert not result.unexpected_keys, result.unexpected_keys
        return self.theirs(model)

    def written_by_peft(self, folder, config, seed=0):
        """Write a folder by PEFT, with random factors; what the model computes there."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = isinstance(config.get("init_lora_weights"), str)  # in float32 alone
            base = self.fresh().float() if start else self.fresh()
            model = peft.get_peft_model(base, peft.get_peft_config(config)).double()
            random = np.random.RandomState(seed)
            for name, parameter in model.named_parameters():
                # AdaLoRA's `ranknum` asks for gradients, too, and is not saved.
                if parameter.requires_grad and "ranknum" not in name:
                    draw = 0.3 * random.standard_normal(parameter.shape)
                    near = 1.0 if "magnitude" in name or "ia3" in name else 0.0
                    value = parameter.detach() + torch.tensor(draw) * (near or 1.0)
                    parameter.data = value.double()
            model.save_pretrained(str(folder))
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


def moved(trainable, seed=0):
    """Trainables away from their start."""
    random = np.random.RandomState(seed)
    return jax.tree.map(
        lambda x: x + 0.3 * jnp.asarray(random.standard_normal(x.shape), x.dtype), trainable
    )
