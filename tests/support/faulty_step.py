"""Audits a step whose gradient XLA gets wrong on CPUs, where it is not told otherwise.

Started by `test_audit.py` in processes of their own, as XLA reads its flags once.
"""

import jax
import numpy as np
import optax

import lora_jax as lj
import variants
from lora_jax.compiled import audit
from lora_jax.training.step import TrainState, make_train_step, squared_error

ROWS, SIZE = 5, 60


def forward(params, x):
    """The mean inner product of the scaled rows of a matrix, whose gradient is a sum of products
    with a constant matrix."""
    scaled = x * params["scale"][..., None]
    return (scaled.swapaxes(1, 2) @ scaled).mean((1, 2))[:, None]


def main():
    random = np.random.default_rng(0)
    params = {"scale": 1 + 0.1 * random.standard_normal((ROWS, SIZE), np.float32)}
    x = random.standard_normal((ROWS, SIZE, SIZE), np.float32)
    adapted = lj.adapt(forward, variants.make("full"), "scale")
    trainable, frozen = adapted.init(jax.random.key(0), params, x)

    def predict(trainable, frozen, batch, rng):
        return adapted.apply(trainable, frozen, batch["x"])

    tx = optax.adam(1e-3)
    step = make_train_step(adapted, tx, predict, squared_error)
    batch = {"x": x, "label": np.zeros(ROWS, np.float32), "weight": np.ones(ROWS, np.float32)}

    def case():
        start = audit.perturbed(trainable)
        state = TrainState.create(adapted, tx, start, frozen, jax.random.key(1))
        return state, frozen, batch

    try:
        found = audit.audit(step, [("5 rows", case)], advice="mend it")
    except ValueError as error:
        print(f"stopped: {error}")
    else:
        print(f"passed: {found.batches}")


if __name__ == "__main__":
    main()
