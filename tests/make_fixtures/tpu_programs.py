"""Writes tests/fixtures/tpu_*.txt: what XLA makes of three programs for eight TPUs.

Needs libtpu, and no TPU:

    pip install "jax[tpu]"
    PYTHONPATH=. JAX_PLATFORMS=cpu python tests/make_fixtures/tpu_programs.py

What the compiler noted for itself is left out, as are tables of source lines. The upper half of the
file needs jax only; the tests compile the same programs for simulated devices.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

FIXTURES = Path(__file__).parents[1] / "fixtures"
RING = [(i, (i + 1) % 4) for i in range(4)]


def mesh_of(devices):
    return Mesh(np.asarray(devices).reshape(2, 4), ("a", "b"))


def each_kind(mesh):
    """One collective of each kind, of a device's (32, 128) float32."""

    def function(x):
        return (
            lax.psum(x, "b"),
            lax.all_gather(2 * x, "a", tiled=True),
            lax.psum_scatter(3 * x, "b", tiled=True),
            lax.all_to_all(4 * x, "b", 1, 0, tiled=True),
            lax.ppermute(5 * x, "b", RING),
        )

    outputs = (P("a"), P(None, "b"), P(("a", "b")), P("a"), P("a", "b"))
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=P("a", "b"), out_specs=outputs, check_vma=False
    )
    return mapped, [_array(mesh, (64, 512), "a", "b")]


def nested(mesh):
    """Five turns of a gather over a, a sum over b, and three permutations over b."""

    def turn(carry, weight):
        def inner(carry, _):
            return jnp.tanh(lax.ppermute(carry, "b", RING)), None

        carry, _ = lax.scan(inner, carry, None, length=3)
        scale = lax.all_gather(weight, "a", tiled=True).sum()
        return jnp.tanh(lax.psum(carry @ weight, "b") * scale), None

    def function(x, weights):
        return lax.scan(turn, x, weights)[0]

    arguments = [_array(mesh, (16, 512), "a", "b"), _array(mesh, (5, 512, 128), None, "b")]
    specs = tuple(each.sharding.spec for each in arguments)
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=P("a", "b"), check_vma=False
    )
    return mapped, arguments


def layers(mesh):
    """A step of six layers of two products, weights sharded over both axes, as XLA partitions it.

    Weights are gathered over a and summed over b, forward and back; their gradients are summed over
    a, of which a device keeps its own.
    """

    def layer(x, weights):
        first, second = weights
        inner = lax.with_sharding_constraint(x @ first, NamedSharding(mesh, P("a", "b")))
        return jnp.tanh(inner @ second), None

    def loss(weights, x):
        return jnp.square(lax.scan(layer, x, weights)[0].astype(jnp.float32)).mean()

    def step(x, weights):
        return jax.tree.map(lambda w, g: w - g, weights, jax.grad(loss)(weights, x))

    half = jnp.bfloat16
    first = _array(mesh, (6, 1024, 1024), None, "a", "b", dtype=half)
    second = _array(mesh, (6, 1024, 1024), None, "b", "a", dtype=half)
    return step, [_array(mesh, (512, 1024), "a", dtype=half), (first, second)]


PROGRAMS = {"each_kind": each_kind, "nested": nested, "layers": layers}


def _array(mesh, shape, *spec, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))


# ---- from here on for libtpu -------------------------------------------------------------------


def _shortened(text):
    head, *lines = [line.partition(", backend_config=")[0] for line in text.splitlines()]
    first = next(i for i, line in enumerate(lines) if line.endswith("{") and " -> " in line)
    return "\n".join([head, "", *lines[first:]]) + "\n"


def main():
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    for name, make in PROGRAMS.items():
        function, arguments = make(mesh_of(topology.devices))
        traced = jax.jit(function).trace(*arguments)
        text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
        (FIXTURES / f"tpu_{name}.txt").write_text(_shortened(text))


if __name__ == "__main__":
    main()
