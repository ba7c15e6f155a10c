"""An example of each method that runs as it stands."""

import variants

START = """\
import jax
import jax.numpy as jnp

import lora_jax as lj
import variants

"""
PRODUCT = """\
def forward(params, x):
    return x @ params["kernel"] + params["bias"]


params = {"kernel": jax.random.normal(jax.random.key(0), (64, 64)), "bias": jnp.zeros(64)}
x = jax.random.normal(jax.random.key(1), (8, 64))
"""
LOOKUP = """\
def forward(params, x):
    return params["embedding"][x]


params = {"embedding": jax.random.normal(jax.random.key(0), (100, 64))}
x = jnp.arange(8)
"""
END = """\
adapted = lj.adapt(forward, variants.make("{name}"), targets=["{target}"]{more})
trainable, frozen = adapted.init(jax.random.key(2), params, x{seen})
gradients = jax.grad(lambda each: jnp.square(adapted.apply(each, frozen, x)).sum())(trainable)
merged = adapted.merge(trainable, frozen)  # the plain tree again, for `forward`
"""
SEEN = """, batches=[x], loss=lambda model, batch: jnp.square(model(batch)).sum()"""


def snippet(name: str) -> str:
    """The example of a method: it is adapted to a toy model, differentiated and merged."""
    kind = variants.find(name)
    lookup = any("embedding" in str(target) for target in kind.suggested.targets)
    end = END.format(
        name=name,
        target="embedding" if lookup else "kernel",
        more="" if kind.adapts else ', also_train=["bias"]',
        seen=SEEN if variants.make(name).needs else "",
    )
    return START + (LOOKUP if lookup else PRODUCT) + end
