"""What follows from where weights lie: factors, stored bits, constants, states; their making."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import lora_jax as lj
import variants
from lora_jax.partition import flatten
from lora_jax.sharding.layout import lay_out
from lora_jax.training.step import TrainState

WIDTH, HEADS, SIZE, INNER, LAYERS, WORDS = 16, 4, 4, 64, 2, 32
RULES = (
    ("embed", P("tensor", "fsdp")),
    ("square", P(None, "fsdp", "tensor")),
    ("query", P(None, "fsdp", "tensor")),
    ("joined", P(None, "tensor", None, "fsdp")),
    ("up", P(None, "fsdp", "tensor")),
    ("down", P(None, "tensor", "fsdp")),
    ("scale", P()),
)
MATRICES = {  # each one's factors: how the inputs are cut, and the outputs
    "layers/square": ("fsdp", "tensor"),
    "layers/query": ("fsdp", "tensor"),
    "layers/joined": ("tensor", "fsdp"),
    "layers/up": ("fsdp", "tensor"),
    "layers/down": ("tensor", "fsdp"),
}


def shapes():
    layers = {
        "square": (WIDTH, WIDTH),
        "query": (WIDTH, HEADS, SIZE),
        "joined": (HEADS, SIZE, WIDTH),
        "up": (WIDTH, INNER),
        "down": (INNER, WIDTH),
        "scale": (WIDTH,),
    }
    stacked = {name: (LAYERS, *shape) for name, shape in layers.items()}
    return {"embed": (WORDS, WIDTH), "layers": stacked}


def forward(params, ids):
    """Heads as axes of their own, a square matrix, what widens and what narrows, in a scan."""

    def layer(x, each):
        x = x + jnp.tanh(x @ each["square"]) * each["scale"][None, None]
        heads = jnp.einsum("btd,dhk->bthk", x, each["query"])
        x = x + jnp.einsum("bthk,hkd->btd", jnp.tanh(heads), each["joined"])
        return x + jnp.tanh(x @ each["up"]) @ each["down"], None

    return jax.lax.scan(layer, params["embed"][ids], params["layers"])[0]


@pytest.fixture
def params(x64):
    random = np.random.default_rng(0)
    is_shape = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    draw = lambda s: jnp.asarray(random.standard_normal(s) / s[-2] ** 0.5)  # noqa: E731
    return jax.tree.map(draw, shapes(), is_leaf=is_shape)


@pytest.fixture(scope="module")
def mesh():
    return lj.make_mesh(2, 2, 2)


IDS = np.zeros((8, 4), np.int32)


def laid(adapted, mesh, params, rules=RULES):
    return lay_out(adapted, mesh, rules, params, IDS)


def specs(tree):
    """The specs of shardings by path, without the tail that is whole."""
    return {path: trimmed(each.spec) for path, each in flatten(tree)[0].items()}


def trimmed(spec):
    entries = list(spec)
    while entries and entries[-1] is None:
        entries.pop()
    return tuple(entries)


def adapt(variant, **settings):
    return lj.adapt(forward, variant, list(MATRICES), **settings)


# ---- where factors lie ---------------------------------------------------------------------------


def test_a_is_cut_as_the_inputs_and_b_as_the_outputs(mesh, params):
    """Of square matrices, too, whose shapes do not say which is which; stacked axes lead."""
    layout = laid(adapt(variants.make("lora", rank=4)), mesh, params)
    found = specs(layout.trainable)
    assert found == {
        f"adapters/{path}/{name}": (None, None, cut)
        for path, (inputs, outputs) in MATRICES.items()
        for name, cut in (("a", inputs), ("b", outputs))
    }
    assert set(specs(layout.frozen.constants).values()) == {()}  # scales
    assert specs(layout.params) == specs(layout.frozen.base) | {}
    assert specs(layout.params)["layers/joined"] == (None, "tensor", None, "fsdp")


def test_cut_within_heads_no_factor_follows(mesh, params):
    """Heads of the factors are one axis, of which only the first part can be cut."""
    rules = (("query", P(None, "fsdp", None, "tensor")), *RULES)
    found = specs(laid(adapt(variants.make("lora", rank=4)), mesh, params, rules).trainable)
    assert found["adapters/layers/query/a"] == (None, None, "fsdp")
    assert found["adapters/layers/query/b"] == ()


def test_a_stack_that_is_cut_cuts_its_factors(mesh, params):
    rules = (("up", P("fsdp", None, "tensor")), *RULES)
    layout = laid(adapt(variants.make("dora", rank=4)), mesh, params, rules)
    found = specs(layout.trainable)
    assert found["adapters/layers/up/a"] == ("fsdp",)
    assert found["adapters/layers/up/b"] == ("fsdp", None, "tensor")
    assert found["adapters/layers/up/m"] == ("fsdp", "tensor")
    assert specs(layout.frozen.constants)["layers/up/scale"] == ("fsdp",)


OWN = {  # variant -> {name: what it grows with}, among trainables and constants
    "dora": {"a": "in", "b": "out", "m": "out", "squares": "out", "scale": ""},
    "lora_fa": {"a": "in", "b": "out", "scale": ""},
    "lora_plus": {"a": "in", "b": "out", "scale": "", "ratio": ""},
    "pissa": {"a": "in", "b": "out", "a0": "in", "b0": "out", "scale": ""},
    "vera": {"d": "", "b": "out"},
    "ia3": {"l": "out"},
    "miss": {"d": "out"},
    "hira": {"a": "in", "b": "out", "scale": ""},
    "adalora": {"a": "in", "b": "out", "e": "", "scale": ""},
}


@pytest.mark.parametrize("name", OWN)
def test_what_a_variant_adds_follows_the_axis_that_it_grows_with(name, mesh, params):
    layout = laid(adapt(small(name)), mesh, params)
    found = specs({"adapters": layout.trainable["adapters"], "constants": layout.frozen.constants})
    seen = set()
    for path, spec in found.items():
        weight, _, own = path.partition("/")[2].rpartition("/")
        inputs, outputs = MATRICES[weight]
        cut = {"in": inputs, "out": outputs, "": None}[OWN[name][own]]
        assert [entry for entry in spec if entry] == [cut] * (cut is not None), path
        assert not spec or spec[-1] == cut
        seen.add(own)
    assert seen == set(OWN[name])
    assert set(specs(layout.frozen.shared).values()) <= {()}


def test_layers_of_other_ranks(mesh, params):
    low, high = (variants.make("lora", rank=rank) for rank in (2, 4))
    targets = {lj.layers("up", 0): low, lj.layers("up", 1): high, lj.layers("square", 1): high}
    adapted = lj.adapt(forward, targets=targets)
    layout = laid(adapted, mesh, params)
    found = specs(layout.trainable)
    assert found["adapters/layers/up/a"] == found["adapters/layers/square/a"]
    assert found["adapters/layers/up/a"] == (None, None, "fsdp")
    assert found["adapters/layers/square/b"] == (None, None, "tensor")
    constants = specs(layout.frozen.constants)
    assert {"layers/up/mask", "layers/square/active"} <= constants.keys()
    assert set(constants.values()) == {()}
    assert_made_alike(layout, params)


def test_what_is_trained_in_full_lies_where_it_did(mesh, params):
    adapted = lj.adapt(forward, variants.make("lora", rank=4), "up", ["square", "scale"])
    layout = laid(adapted, mesh, params)
    found = specs(layout.trainable["params"])
    assert found == {"layers/square": (None, "fsdp", "tensor"), "layers/scale": ()}
    assert not found.keys() & layout.frozen.base.keys()
    assert_made_alike(layout, params)


# ---- what is stored quantised --------------------------------------------------------------------


def test_stored_bits_are_cut_as_their_matrix(mesh, params):
    storage = {"(square|down|joined)": lj.NF4(block=4), "up": lj.Int8(), "query": lj.NF4(block=16)}
    layout = laid(adapt(variants.make("lora", rank=4), quantize=storage), mesh, params)
    found = specs(layout.frozen.base)
    assert found["layers/square/codes"] == found["layers/square/absmax"] == (None, "fsdp", "tensor")
    assert found["layers/down/codes"] == found["layers/down/absmax"] == (None, "tensor", "fsdp")
    assert found["layers/joined/codes"] == (None, "tensor", "fsdp")  # heads are one axis
    assert found["layers/query/absmax"] == (None, None, "tensor")  # one block a column
    assert found["layers/up/codes"] == (None, "fsdp", "tensor")
    assert found["layers/up/absmax"] == (None, None, "tensor")
    assert found["embed"] == ("tensor", "fsdp")
    assert_made_alike(layout, params)


def test_twice_quantised_scales_have_their_own_whole(mesh, params):
    storage = {"(square|up|down)": lj.NF4(block=4, double_quant=True)}
    layout = laid(adapt(variants.make("lora", rank=4), quantize=storage), mesh, params)
    found = specs(layout.frozen.base)
    for path in ("layers/square", "layers/up", "layers/down"):
        assert found[f"{path}/absmax"] == (None, *MATRICES[path])
        assert found[f"{path}/nested_absmax"] == found[f"{path}/nested_offset"] == ()
    # The mean of scales is a sum in another order: their own differ by rounding, the rest not.
    key = jax.random.key(0)
    _, wanted = jax.jit(lambda params: layout.adapted.init(key, params, IDS))(params)
    _, frozen = layout.init(key, params, IDS)
    for path in ("layers/square", "layers/up", "layers/down"):
        got, own = frozen.base[path], wanted.base[path]
        np.testing.assert_array_equal(got["codes"], own["codes"])
        np.testing.assert_allclose(got["nested_offset"], own["nested_offset"], rtol=1e-6)
        np.testing.assert_allclose(got["nested_absmax"], own["nested_absmax"], rtol=1e-6)
        off = np.abs(np.asarray(got["absmax"], int) - np.asarray(own["absmax"], int))
        assert off.max() <= 1 and (off > 0).mean() < 0.01


def test_what_is_gathered_is_stored_bits_without_fsdp(mesh, params):
    """Whatever names of mesh axes stand together on one axis."""
    rules = (("square", P(None, None, ("fsdp", "tensor"))), ("down", P(None, ("data", "fsdp"))))
    storage = {"(square|up|down)": lj.NF4(block=4)}
    adapted = adapt(variants.make("lora", rank=4), quantize=storage)
    layout = laid(adapted, mesh, params, (*rules, *RULES))
    used = {
        each.use.path: {n: trimmed(s.spec) for n, s in each.storage.shardings}
        | {"dense": trimmed(each.storage.dense.spec)}
        for each in layout.frozen.spec.placements
        if each.storage is not None
    }
    kinds = ("codes", "absmax", "dense")
    assert used == {
        "layers/square": dict.fromkeys(kinds, (None, "tensor")),
        "layers/up": dict.fromkeys(kinds, (None, "tensor")),
        "layers/down": dict.fromkeys(kinds, ()),
    }


def test_numbers_that_no_scale_can_stand_for_are_named(mesh, params):
    params["layers"]["up"] = params["layers"]["up"].at[0, 3, 5].set(jnp.nan)
    layout = laid(adapt(variants.make("lora", rank=4), quantize={"up": lj.NF4()}), mesh, params)
    with pytest.raises(ValueError, match="'layers/up' cannot be quantised: 1 of its numbers"):
        layout.init(jax.random.key(0), params, IDS)


# ---- making arrays on their devices --------------------------------------------------------------


def assert_made_alike(layout, params):
    """`init` on devices gives what it does on one, each array where the layout says.

    To the bit, but for sums over an axis that is cut, and decompositions.
    """
    key = jax.random.key(7)
    on_one = jax.jit(lambda key, params: layout.adapted.init(key, params, IDS)).trace(key, params)
    sums = r" (reduce_sum|dot_general|svd|qr|householder_product)\b"
    exact = not re.search(sums, str(on_one.jaxpr))
    wanted = on_one.lower().compile()(key, params)
    got = layout.init(key, params, IDS)
    wanted = wanted[0], layout.gathering(wanted[1])
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    said = jax.tree.leaves((layout.trainable, layout.frozen))
    like = jax.tree.leaves(layout.shapes(key, params, IDS))
    pairs = zip(flatten(got)[0].items(), jax.tree.leaves(wanted), said, like, strict=True)
    for (path, leaf), own, sharding, shape in pairs:
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), path
        assert shape.sharding == sharding
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype) == (own.shape, own.dtype)
        if exact:
            np.testing.assert_array_equal(leaf, own, err_msg=path)
        else:
            np.testing.assert_allclose(leaf, own, rtol=1e-9, atol=1e-12, err_msg=path)


@pytest.mark.parametrize(
    "name",
    [
        *("lora", "dora", "adalora", "vera", "pissa", "lokr", "gralora", "boft", "fourierft"),
        *("trainable_tokens", "full"),
    ],
)
def test_init_gives_the_numbers_of_one_device(name, mesh, params):
    targets = {"trainable_tokens": ["embed"]}  # the rows of tables are what it is for
    variant = small(name)
    also = [] if variant.adapts else ["scale"]  # there may be nothing else that trains
    adapted = lj.adapt(forward, variant, targets.get(name, ["square", "joined"]), also)
    assert_made_alike(laid(adapted, mesh, params), params)


def small(name):
    """A variant of a small rank, with what else it needs to be told."""
    usual = {"rank": 4, "target_rank": 2, "total_steps": 10, "frequencies": 20}
    fields = {each.name for each in dataclasses.fields(variants.find(name))}
    return variants.make(name, **{n: value for n, value in usual.items() if n in fields})


def test_nothing_is_copied_that_lies_in_its_place(mesh, params):
    layout = laid(adapt(variants.make("lora", rank=4), quantize={"up": lj.NF4()}), mesh, params)
    placed = layout.place(params)
    again = layout.place(placed)
    _, frozen = layout.init(jax.random.key(0), placed, IDS)
    leaves = flatten(placed)[0]
    for path, leaf in flatten(again)[0].items():
        assert pointers(leaf) == pointers(leaves[path])
        if path != "layers/up":
            assert pointers(frozen.base[path]) == pointers(leaves[path]), path


def test_what_trains_is_copied(mesh, params):
    """So that donation takes nothing from the user's tree, nor from the constants."""
    adapted = lj.adapt(forward, variants.make("pissa", rank=4), "up", ["square"])
    layout = laid(adapted, mesh, params)
    placed = layout.place(params)
    trainable, frozen = layout.init(jax.random.key(0), placed, IDS)
    kept = {each for leaf in jax.tree.leaves((placed, frozen)) for each in pointers(leaf)}
    own = {each for leaf in jax.tree.leaves(trainable) for each in pointers(leaf)}
    assert not own & kept


def pointers(array):
    return [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]


def test_settings_in_a_tree_stay_and_one_row_serves_as_an_example(mesh, x64):
    def call(params, x):
        return (x @ params["w"]) ** params["power"]

    tree = {"w": jnp.ones((16, 8)), "power": 2}
    adapted = lj.adapt(call, variants.make("lora", rank=2), "w")
    layout = lay_out(adapted, mesh, [("w", P("fsdp", "tensor"))], tree, np.ones((1, 16)))
    assert layout.params["power"] is None and layout.place(tree)["power"] == 2
    trainable, frozen = layout.init(jax.random.key(0), tree, np.ones((1, 16)))
    y = adapted.apply(trainable, frozen, jax.device_put(np.ones((8, 16)), layout.rows))
    np.testing.assert_array_equal(y, np.full((8, 8), 256.0))


def test_a_parameter_without_a_rule_is_an_error(mesh, params):
    with pytest.raises(ValueError, match="no rule says how 'layers/joined' is sharded; nearest"):
        laid(adapt(variants.make("lora", rank=4)), mesh, params, [RULES[0], *RULES[4:], RULES[2],
             RULES[1]])  # fmt: skip


# ---- what optimisers and variants keep -----------------------------------------------------------


def state_of(tx, layout, params):
    trainable, frozen = layout.shapes(jax.random.key(0), params, IDS)

    def start(trainable, frozen):
        return TrainState.create(layout.adapted, tx, trainable, frozen, jax.random.key(1))

    with jax.numpy_dtype_promotion("standard"):
        shapes = jax.eval_shape(start, trainable, frozen)
    return shapes, layout.like(shapes)


@pytest.mark.parametrize(
    "tx",
    [
        optax.adamw(1e-3),
        optax.sgd(1e-3, momentum=0.9),
        optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-3)),
        optax.masked(optax.adam(1e-3), lambda tree: jax.tree.map(lambda _: True, tree)),
        optax.MultiSteps(optax.adam(1e-3), 2),
        optax.adafactor(1e-3, min_dim_size_to_factor=1000),
    ],
    ids=["adamw", "sgd", "chained", "masked", "multi_steps", "adafactor_whole"],
)
def test_moments_lie_where_their_factor_does(tx, mesh, params):
    adapted = lj.adapt(forward, variants.make("dora", rank=4), list(MATRICES), ["embed"])
    layout = laid(adapted, mesh, params)
    shapes, found = state_of(tx, layout, params)
    assert jax.tree.structure(found) == jax.tree.structure(shapes)
    wanted = specs(layout.trainable)
    sizes = {path: leaf.shape for path, leaf in flatten(shapes.trainable)[0].items()}
    assert specs(found.trainable) == wanted
    counts = dict.fromkeys(wanted, 0)
    for path, leaf in flatten(shapes.opt_state)[0].items():
        own = next((each for each in wanted if path.endswith(each)), None)
        spec = specs(found.opt_state)[path]
        if own is not None and leaf.shape == sizes[own]:
            assert spec == wanted[own], path
            counts[own] += 1
        else:
            assert spec == () or own is None, path
    assert min(counts.values()) >= 1
    assert specs(found.rng if isinstance(found.rng, dict) else {"rng": found.rng}) == {"rng": ()}


def test_factored_moments_are_whole_and_every_state_can_be_made(mesh, params):
    """They are of fewer axes than their parameter; so are counts."""
    adapted = lj.adapt(forward, variants.make("lora", rank=4), "up", ["square"])
    layout = laid(adapted, mesh, params)
    shapes, found = state_of(optax.adafactor(1e-3, min_dim_size_to_factor=4), layout, params)
    leaves, placed = flatten(shapes.opt_state)[0], flatten(found.opt_state)[0]
    rows = [path for path in leaves if "v_row" in path and path.endswith("layers/square")]
    assert [leaves[path].shape for path in rows] == [(LAYERS, WIDTH)]
    assert placed[rows[0]].is_fully_replicated
    for path, leaf in leaves.items():
        placed[path].shard_shape(leaf.shape)  # raises where it does not divide


def test_adaloras_state_is_cut_as_its_factors(mesh, params):
    adapted = adapt(small("adalora"))
    layout = laid(adapted, mesh, params)
    _, found = state_of(optax.adamw(1e-3), layout, params)
    wanted = specs(layout.trainable["adapters"])
    (state,) = found.variant_state
    assert specs(state["importance"]) == specs(state["uncertainty"]) == wanted
    assert set(specs(state["kept"]).values()) == {()}
