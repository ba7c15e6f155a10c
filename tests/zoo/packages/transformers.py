"""Hugging Face transformers, version 4: a Flax model called with parameters."""

import jax
import transformers as hf

from zoo.family import Family

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}


def _initial(model, shape=(1, 4)):
    """Random parameters, where a user would load those of a checkpoint."""
    return jax.jit(lambda key: model.init_weights(key, shape))(jax.random.key(0))


def bert() -> Family:
    model = hf.FlaxBertModel(hf.BertConfig(**SIZES), _do_init=False)
    ids = jax.random.randint(jax.random.key(0), (2, 6), 0, 50)
    return Family(lambda params, ids: model(ids, params=params)[0], _initial(model), (ids,))


def roberta() -> Family:
    model = hf.FlaxRobertaForMaskedLM(hf.RobertaConfig(**SIZES), _do_init=False)
    ids = jax.random.randint(jax.random.key(0), (2, 6), 0, 50)
    return Family(lambda params, ids: model(ids, params=params).logits, _initial(model), (ids,))


def gpt2() -> Family:
    config = hf.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=12)
    model = hf.FlaxGPT2LMHeadModel(config, _do_init=False)
    ids = jax.random.randint(jax.random.key(0), (2, 6), 0, 50)
    return Family(lambda params, ids: model(ids, params=params).logits, _initial(model), (ids,))


def llama() -> Family:
    config = hf.LlamaConfig(num_key_value_heads=1, **SIZES)
    model = hf.FlaxLlamaForCausalLM(config, _do_init=False)
    ids = jax.random.randint(jax.random.key(0), (2, 6), 0, 50)
    return Family(lambda params, ids: model(ids, params=params).logits, _initial(model), (ids,))


def vit() -> Family:
    config = hf.ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=4,
    )
    model = hf.FlaxViTForImageClassification(config, _do_init=False)
    images = jax.random.normal(jax.random.key(0), (2, 3, 16, 16))
    return Family(
        lambda params, x: model(x, params=params).logits, _initial(model, (1, 16, 16, 3)), (images,)
    )


def whisper() -> Family:
    config = hf.WhisperConfig(
        vocab_size=50,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=8,
        max_target_positions=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    model = hf.FlaxWhisperForConditionalGeneration(config, _do_init=False)
    audio = jax.random.normal(jax.random.key(0), (2, 8, 16))
    ids = jax.random.randint(jax.random.key(0), (2, 4), 0, 50)

    def forward(params, audio, ids):
        return model(audio, decoder_input_ids=ids, params=params).logits

    return Family(forward, _initial(model, (1, 8, 16)), (audio, ids))
