"""Penzai: models whose parameters are variables, frozen into values."""

import jax
from penzai import pz
from penzai.models.simple_mlp import MLP
from penzai.models.transformer.variants import llamalike_common

from zoo.family import Family


def mlp() -> Family:
    model = MLP.from_config(name="mlp", init_base_rng=jax.random.key(0), feature_sizes=[12, 16, 4])
    structure, params = pz.unbind_params(model, freeze=True)
    x = jax.random.normal(jax.random.key(1), (8, 12))

    def forward(params, x):
        bound = pz.bind_variables(structure, params)
        return bound(pz.nx.wrap(x).tag("batch", "features")).unwrap("batch", "features")

    return Family(forward, params, (x,))


def llama() -> Family:
    config = llamalike_common.LlamalikeTransformerConfig(
        num_kv_heads=1,
        query_head_multiplier=2,
        embedding_dim=16,
        projection_dim=8,
        mlp_hidden_dim=32,
        num_decoder_blocks=1,
        vocab_size=50,
        mlp_variant="swiglu",
        tie_embedder_and_logits=False,
    )
    model = llamalike_common.build_llamalike_transformer(config, jax.random.key(0))
    structure, params = pz.unbind_params(model, freeze=True)
    ids = jax.random.randint(jax.random.key(1), (2, 6), 0, 50)

    def forward(params, ids):
        bound = pz.bind_variables(structure, params)
        tokens = pz.nx.wrap(ids).tag("batch", "seq")
        positions = pz.nx.arange("seq", ids.shape[1])
        logits = bound(tokens, token_positions=positions)
        return logits.unwrap("batch", "seq", "vocabulary")

    return Family(forward, params, (ids,))
