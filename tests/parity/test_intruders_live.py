"""Intruder dimensions of linear layers, counted by PEFT's `reduce_intruder_dimension`.

PEFT reports its counts only in what it logs. Of an embedding it compares the other side's vectors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_jax as lj
import variants

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
intruders = pytest.importorskip("peft.tuners.lora.intruders")

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("x64")]
SHAPES = {"square": (24, 24), "wide": (12, 40), "tall": (40, 12)}
"""Of each weight: (inputs, outputs)."""
RANK, ALPHA, SIZES = 6, 3, (0.02, 0.1, 0.3, 1.0)


def weights(seed):
    rng = np.random.default_rng(seed)
    bases = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    return bases, {
        name: (rng.standard_normal((RANK, rows)), rng.standard_normal((RANK, columns)))
        for name, (rows, columns) in SHAPES.items()
    }


def by_peft(bases, factors, k, epsilon):
    net = torch.nn.ModuleDict({name: torch.nn.Linear(*SHAPES[name], bias=False) for name in bases})
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(SHAPES))
    model = peft.get_peft_model(net.double(), config)
    for name, base in bases.items():
        layer, (a, b) = model.base_model.model[name], factors[name]
        layer.get_base_layer().weight.data = torch.from_numpy(base.T.copy())
        layer.lora_A["default"].weight.data = torch.from_numpy(a)
        layer.lora_B["default"].weight.data = torch.from_numpy(b.T.copy())
    lines = []
    intruders.reduce_intruder_dimension(
        model, top_k=k, threshold_epsilon=epsilon, logging_sink=lines.append
    )
    found = dict(line.split(": ", 1) for line in lines if "ntruders" in line)
    return {
        place.rpartition(".")[2]: int(said.rpartition(" ")[2]) if said[0] == "I" else 0
        for place, said in found.items()
    }


def by_us(bases, factors, k, epsilon):
    adapted = lj.adapt(
        lambda params, x: [x[name] @ params[name] for name in SHAPES],
        variants.make("lora", rank=RANK, alpha=ALPHA),
        targets=list(SHAPES),
    )
    x = {name: jnp.ones((1, rows)) for name, (rows, _) in SHAPES.items()}
    begun, frozen = adapted.init(jax.random.key(0), jax.tree.map(jnp.asarray, bases), x)
    adapters = {
        name: {"a": jnp.asarray(a), "b": jnp.asarray(b)} for name, (a, b) in factors.items()
    }
    trainable = {**begun, "adapters": adapters}
    found = lj.distance.intruder_dimensions((trainable, frozen), k, epsilon)
    return {name: int(count) for name, count in found.items()}


@pytest.mark.parametrize(("k", "epsilon"), [(10, 0.5), (4, 0.8), (30, 0.6)])
def test_as_many_as_peft_counts(k, epsilon):
    seen = set()
    for seed, size in enumerate(SIZES):
        bases, factors = weights(seed)
        factors = {name: (size * a, b) for name, (a, b) in factors.items()}
        theirs = by_peft(bases, factors, k, epsilon)
        assert by_us(bases, factors, k, epsilon) == theirs
        seen |= set(theirs.values())
    assert 0 in seen and len(seen) >= 3  # updates that add none, few, and many
