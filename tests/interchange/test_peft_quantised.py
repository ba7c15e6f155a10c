"""An adapter of a quantised base, read from a PEFT folder onto that base."""

import jax
import jax.numpy as jnp
import numpy as np

import lora_jax as lj
import variants

NAMES = lj.names_from_patterns({"w/kernel": "w"})


def test_it_computes_what_it_did(tmp_path):
    """DeLoRA keeps the norms of the weight, which are those of what is stored."""
    random = np.random.default_rng(0)
    params = {"w": {"kernel": jnp.asarray(random.standard_normal((64, 8)), jnp.float32)}}
    x = jnp.asarray(random.standard_normal((3, 64)), jnp.float32)

    def forward(params, x):
        return x @ params["w"]["kernel"]

    storage = {"w/kernel": lj.NF4()}
    adapted = lj.adapt(forward, variants.make("delora", rank=2), quantize=storage)
    trainable, frozen = adapted.init(jax.random.key(0), params, x)
    trainable = jax.tree.map(lambda leaf: leaf + 0.5, trainable)
    lj.save_peft(tmp_path, trainable, frozen, NAMES)
    expected = adapted.apply(trainable, frozen, x)

    def outputs(**given):
        read = lj.load_peft(tmp_path, variants.from_peft, NAMES, forward, params, x, **given)
        return read.adapted.apply(read.trainable, read.frozen, x)

    np.testing.assert_allclose(outputs(quantize=storage), expected, rtol=1e-6)
    assert np.abs(outputs() - expected).max() > 0.1
