"""Which weights and which of their axes are chosen, and what a user is told of the others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lora_jax as lj
import variants
from lora_jax.contract.clause import by_numpy
from lora_jax.partition import select_paths
from lora_jax.training.optim import scale_params
from variants.lora import LoRA

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def moved(trainable, seed=1):
    """The trainables after some training."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(x) + 0.1 * rng.normal(size=x.shape), trainable)


def started(forward, params, x, variant=None, targets="all-linear", **options):
    adapted = lj.adapt(forward, variant, targets, **options)
    trainable, frozen = adapted.init(KEY, params, x)
    return adapted, moved(trainable), frozen


def agree(adapted, trainable, frozen, x):
    """Assert that `apply` and its gradient are those of the merged weights."""

    def loss(trainable, model):
        return jnp.sum(jnp.sin(model(trainable)))

    fast, slow = (
        by_numpy(jax.value_and_grad(functools.partial(loss, model=model)))(trainable)
        for model in (
            lambda t: adapted.apply(t, frozen, x),
            lambda t: adapted.forward(adapted.merge(t, frozen), x),
        )
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), fast, slow)


# -- paths -----------------------------------------------------------------------------------------

TREE = {"head": {"w": normal(4, 3)}, "aux": {"head": {"w": normal(4, 3, seed=1)}}}


def two_heads(p, x):
    return x @ p["head"]["w"] + x @ p["aux"]["head"]["w"]


def test_a_whole_path_is_no_tail():
    paths = ["aux/head/w", "head/w", "linear/~/w", "a[0]/(b)/w", "x/a0/b/w"]
    for path in paths:
        assert select_paths([path], paths) == [path]
    assert select_paths(["w"], paths) == paths
    assert select_paths(["head/w", "aux/.*"], paths) == ["aux/head/w", "head/w"]
    scaled = scale_params(["head/w"], 3.0)
    tree = {"params": {path: jnp.ones(2) for path in paths}}
    updates = scaled.update(tree, scaled.init(tree))[0]["params"]
    assert {path for path, x in updates.items() if x[0] == 3} == {"head/w"}


@pytest.mark.parametrize("turned", [False, True])
def test_a_whole_path_decides_before_other_patterns(turned):
    targets = [("head/w", LoRA(rank=1)), ("w", LoRA(rank=2))]
    chosen = dict(reversed(targets) if turned else targets)
    _, trainable, _ = started(two_heads, TREE, normal(2, 4), targets=chosen)
    ranks = {path: each["a"].shape[-2] for path, each in trainable["adapters"].items()}
    assert ranks == {"head/w": 1, "aux/head/w": 2}


def test_patterns_of_one_variant_may_overlap():
    for targets in (["head/w", "w"], ["w", "head/w"], ["w", "w"], ["all-linear", "w"]):
        _, trainable, _ = started(two_heads, TREE, normal(2, 4), LoRA(rank=1), targets)
        assert set(trainable["adapters"]) == {"head/w", "aux/head/w"}
    also = {"also_train": "aux/head/w"}
    _, trainable, _ = started(two_heads, TREE, normal(2, 4), LoRA(rank=1), "head/w", **also)
    assert (set(trainable["adapters"]), set(trainable["params"])) == ({"head/w"}, {"aux/head/w"})


# -- axes ------------------------------------------------------------------------------------------


def member(p, x):
    return jax.nn.gelu(x @ p["up"]) @ p["down"]


def experts(p, x):
    hidden = jnp.einsum("nd,edf->enf", x, p["up"])
    y = jnp.einsum("enf,efd->end", jax.nn.silu(hidden), p["down"])
    return jnp.einsum("end,ne->nd", y, jax.nn.softmax(x @ p["router"]))


def turned_experts(p, x):
    """The weight on the left, and the experts' axis last in the result."""
    hidden = jnp.einsum("fde,nd->fne", p["up"], x)
    y = jnp.einsum("efd,fne->nde", p["down"], jnp.maximum(hidden, 0).astype(hidden.dtype))
    return jnp.einsum("nde,ne->nd", y, jax.nn.softmax(x @ p["router"]))


ENSEMBLE = {"up": normal(5, 3, 4), "down": normal(5, 4, 3, seed=1)}
EXPERTS = {**ENSEMBLE, "router": normal(3, 5, seed=2)}
TURNED = {**EXPERTS, "up": ENSEMBLE["up"].transpose(2, 1, 0)}


@pytest.mark.parametrize(
    ("forward", "params", "axes"),
    [
        (jax.vmap(member, (0, None)), ENSEMBLE, ((0,), (1,), (2,))),
        (jax.vmap(member, (0, None), 1), ENSEMBLE, ((0,), (1,), (2,))),
        (experts, EXPERTS, ((0,), (1,), (2,))),
        (turned_experts, TURNED, ((2,), (1,), (0,))),
    ],
    ids=["ensemble", "members_last", "experts", "turned"],
)
@pytest.mark.parametrize("method", ["lora", "dora", "loha"])
def test_an_axis_that_meets_a_stack_is_one(forward, params, axes, method):
    """Each member of an ensemble and each expert has its own factors, however the product goes."""
    x = normal(7, 3, seed=3)
    variant = variants.make(method, rank=2)
    uses = lj.discover(forward, params, x)
    assert [(use.stack, use.inputs, use.outputs) for use in (uses["up"], uses["down"])] == [
        axes,
        ((0,), (1,), (2,)),
    ]
    assert all(each.merges is None for use in uses.values() for each in use.uses)
    agree(*started(forward, params, x, variant), x)


def test_an_adapted_ensemble_is_an_ensemble_of_adapted_members():
    x, many = normal(7, 3, seed=3), jax.vmap(member, (0, None))
    adapted, trainable, frozen = started(many, ENSEMBLE, x, LoRA(rank=2))
    one = lj.adapt(member, LoRA(rank=2))
    for index, y in enumerate(adapted.apply(trainable, frozen, x)):
        _, own = one.init(KEY, {name: w[index] for name, w in ENSEMBLE.items()}, x)
        mine = jax.tree.map(lambda leaf, index=index: leaf[index], trainable)
        np.testing.assert_allclose(one.apply(mine, own, x), y, rtol=1e-12)


@pytest.mark.parametrize("loop", ["scan", "rows", "while"])
def test_a_stack_may_be_met_inside_a_loop(loop):
    """Members with a loop of layers between their first weight and their last."""

    def recurrent(p, x):
        h = x @ p["up"]
        if loop == "scan":
            h, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, p["layers"])
        elif loop == "rows":
            h, _ = lax.scan(lambda c, row: (jnp.tanh((c + row) @ p["step"]), None), 0 * h[0], h)
        else:
            h = lax.fori_loop(0, jnp.int32(x.shape[0]), lambda _, h: jnp.tanh(h @ p["step"]), h)
        return h @ p["down"]

    params = dict(ENSEMBLE)
    params |= {"layers": normal(5, 2, 4, 4)} if loop == "scan" else {"step": normal(5, 4, 4)}
    x, many = normal(7, 3, seed=3), jax.vmap(recurrent, (0, None))
    uses = lj.discover(many, params, x)
    assert (uses["up"].stack, uses["up"].inputs, uses["up"].outputs) == ((0,), (1,), (2,))
    assert all(use.stack[0] == 0 for use in uses.values())
    if loop != "while":  # whose end is not known, so that it has no gradient
        agree(*started(many, params, x, LoRA(rank=2)), x)


def test_biases_gates_and_recurrences_keep_the_members():
    def gated(p, x):
        gate, value = jnp.split(x @ p["up"] + p["bias"][None], 2, axis=-1)
        return (jax.nn.silu(gate) * value) @ p["down"]

    def recurrent(p, x):
        def step(h, row):
            h = jnp.tanh(row @ p["up"] + h @ p["step"] + p["bias"])
            return h, h

        return lax.scan(step, jnp.zeros(4), x)[1] @ p["down"]

    params = {"up": normal(5, 3, 4), "bias": normal(5, 4), "step": normal(5, 4, 4)}
    for one, hidden in ((gated, 2), (recurrent, 4)):
        own = {**params, "down": normal(5, hidden, 3)}
        uses = lj.discover(jax.vmap(one, (0, None)), own, normal(7, 3))
        linear = [(use.stack, use.inputs) for use in uses.values() if use.is_linear]
        assert linear and set(linear) == {((0,), (1,))}


def test_heads_of_attention_are_outputs():
    def attention(p, x):
        q, k, v = (jnp.einsum("nd,dhk->hnk", x, p[name]) for name in "qkv")
        seen = jax.nn.softmax(q @ k.transpose(0, 2, 1)) @ v
        return jnp.einsum("hnk,hkd->nd", seen, p["o"])

    params = {name: normal(6, 2, 3) for name in "qkv"} | {"o": normal(2, 3, 6)}
    uses = lj.discover(attention, params, normal(5, 6))
    assert {(use.stack, use.inputs, use.outputs) for use in uses.values()} == {
        ((), (0,), (1, 2)),
        ((), (0, 1), (2,)),
    }


def spectral(p, x):
    """A filter of each frequency, as in a Fourier neural operator, with weights as they are."""
    return jnp.sum(x[:, :, None, :] * p["w"][None], axis=1)


@pytest.mark.parametrize(
    ("axes", "stack", "matrix"),
    [
        ((0, 1), (3,), (4, 2)),
        ((0, 1, 2), (3,), (4, 2)),
        (((0,), (1, -1), ()), (), (4, 6)),
        ((0, 2, 1), (2,), (4, 3)),
    ],
)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_axes_that_a_user_states(axes, stack, matrix, method):
    params, x = {"w": normal(4, 2, 3)}, normal(5, 4, 3)
    variant = variants.make(method, rank=1)
    found = started(spectral, params, x, variant, "w", axes={"w": axes})
    use = found[2].spec.placements[0].use
    assert (use.stack_shape, use.matrix) == (stack, matrix)
    agree(*found, x)
    assert not np.allclose(found[0].apply(found[1], found[2], x), spectral(params, x))


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"w": (0, 0)}, r"axes of 'w': .* must name each of its 3 axes once"),
        ({"w": (0, 3)}, r"must name input and output axes of an array of shape \(4, 2, 3\)"),
        ({"w": ((), 1)}, "must name input and output axes"),
        ({"w": (0, 1, (1, 2))}, "must name each of its 3 axes once"),
        ({"w": 0}, r"axes: 'w' must map to \(inputs, outputs\) or"),
        ({"w": (0, "1")}, r"axes: 'w' must map to \(inputs, outputs\) or"),
        ({"v": (0, 1)}, "pattern 'v' matches no weight; nearest: 'w'"),
        ([(0, 1)], "axes maps patterns to axes"),
    ],
)
def test_axes_that_there_are_not(axes, said):
    with pytest.raises(ValueError, match=said):
        started(spectral, {"w": normal(4, 2, 3)}, normal(5, 4, 3), LoRA(rank=1), "w", axes=axes)


def test_a_weight_without_a_product_asks_for_its_axes():
    with pytest.raises(ValueError, match=r"\(used: mul\); say which .* axes=\{'w': \(0, 1\)\}"):
        started(spectral, {"w": normal(4, 2, 3)}, normal(5, 4, 3), LoRA(rank=1), "w")
    with pytest.raises(ValueError, match="complex128; adapters are real: keep its real and"):
        x = normal(5, 4, 3).astype(complex)
        started(spectral, {"w": 1j * normal(4, 2, 3)}, x, LoRA(rank=1), "w")


# -- parts of a matrix -----------------------------------------------------------------------------

D = 4


def fused(p, x):
    """Queries, keys and values in one array."""
    q, k, v = (x @ p["w"][:, i * D : (i + 1) * D] for i in range(3))
    return jax.nn.softmax(q @ k.T) @ v


def fused_split(p, x):
    q, k, v = (x @ w for w in jnp.split(p["w"], 3, axis=1))
    return jax.nn.softmax(q @ k.T) @ v


def gated(p, x):
    """A recurrence whose gates are parts of one array, one of them met by another input."""

    def step(h, x):
        r, z, n = (p["w"][:, i * D : (i + 1) * D] for i in range(3))
        reset, update = jax.nn.sigmoid(h @ r + x), jax.nn.sigmoid(h @ z)
        return (1 - update) * jnp.tanh((reset * h) @ n) + update * h, h

    return lax.scan(step, x[0], x)[1]


def by_inputs(p, x):
    return jnp.tanh(x[:, :2] @ p["w"][:2]) + x[:, 2:] @ p["w"][2:] + x[:, :1] @ p["w"][3:]


def some_heads(p, x):
    heads = p["w"].reshape(D, 6, 2)
    found = jnp.einsum("nd,dhk->nhk", x, heads[:, 1:5:2])
    return jnp.einsum("nhk,dhk->nd", found, lax.dynamic_slice_in_dim(heads, x.shape[0] - 3, 2, 1))


def stacked(p, x):
    def layer(x, w):
        return jnp.tanh(x @ w[:, :D]) + x @ w[:, D : 2 * D], None

    return lax.scan(layer, x, p["layers"])[0]


PARTS = {
    "fused": (fused, {"w": normal(D, 3 * D)}),
    "split": (fused_split, {"w": normal(D, 3 * D)}),
    "gated": (gated, {"w": normal(D, 3 * D)}),
    "inputs": (by_inputs, {"w": normal(D, 5)}),
    "heads": (some_heads, {"w": normal(D, 12)}),
    "stacked": (stacked, {"layers": normal(3, D, 2 * D)}),
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("method", ["lora", "dora", "vera", "lokr"])
def test_parts_of_a_matrix_are_those_of_its_factors(name, method):
    forward, params = PARTS[name]
    x = normal(5, D, seed=2)
    (use,) = lj.discover(forward, params, x).values()
    assert all(each.of_part and each.merges is None for each in use.uses)
    agree(*started(forward, params, x, variants.make(method, rank=2)), x)


# -- convolutions ----------------------------------------------------------------------------------

SPATIAL = "DHW"


@pytest.mark.parametrize("channels", ["last", "first"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr"])
def test_convolutions_of_every_kind(method, dims, channels):
    """Strides, padding, dilations of both sides and groups, in both layouts, as when merged."""
    places, sizes, kernel = SPATIAL[:dims], (5, 6, 4)[:dims], (2, 3, 2)[:dims]
    last = channels == "last"
    layout = (f"N{places}C", f"{places}IO") if last else (f"NC{places}", f"OI{places}")
    x = normal(2, *sizes, 8) if last else normal(2, 8, *sizes)
    for groups in (1, 2):
        w = normal(*kernel, 8 // groups, 12) if last else normal(12, 8 // groups, *kernel)

        def forward(p, x, groups=groups):
            return lax.conv_general_dilated(
                x,
                p["w"],
                window_strides=(2, 1, 1)[:dims],
                padding=((1, 0), (2, 1), (0, 0))[:dims],
                lhs_dilation=(1, 1, 2)[:dims],
                rhs_dilation=(1, 2, 1)[:dims],
                dimension_numbers=(*layout, layout[0]),
                feature_group_count=groups,
            )

        rank = 1 if method == "loha" else 2
        found = started(forward, {"w": w}, x, variants.make(method, rank=rank), "w")
        agree(*found, x)
        factored = groups == 1 and method != "lokr"
        assert count_of(found, x, "conv_general_dilated") == (2 if factored else 1)


def count_of(found, x, name):
    adapted, trainable, frozen = found
    return str(jax.make_jaxpr(adapted.apply)(trainable, frozen, x)).count(f"{name}[")


@pytest.mark.parametrize(
    ("layout", "kernel"),
    [(("NHWC", "HWIO", "NHWC"), (1, 1, 4, 6)), (("WNHC", "OWHI", "WCNH"), (6, 1, 1, 4))],
)
@pytest.mark.parametrize("method", ["dora", "lokr"])
def test_a_kernel_of_one_place_is_a_product(layout, kernel, method):
    x, w = normal(2, 5, 3, 4), normal(*kernel)

    def forward(p, x):
        return lax.conv_general_dilated(x, p["w"], (2, 1), "VALID", dimension_numbers=layout)

    found = started(forward, {"w": w}, x, variants.make(method, rank=2), "w")
    agree(*found, x)
    assert count_of(found, x, "conv_general_dilated") == 0


def test_a_kernel_that_the_program_turns_first():
    """A stored layout that is not the convolution's own, and a product by its one place."""

    def forward(p, x):
        kernel = p["w"].reshape(3, 2, 4).transpose(2, 1, 0)
        y = lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return y

    found = started(forward, {"w": normal(3, 8)}, normal(2, 5, 2), LoRA(rank=2), "w")
    use = found[2].spec.placements[0].use
    agree(*found, normal(2, 5, 2))
    assert use.is_convolution


def test_dropout_of_a_convolution_is_of_its_inputs():
    x, variant = normal(2, 5, 2), LoRA(rank=2, dropout=0.4)

    def forward(p, x):
        return lax.conv_general_dilated(
            x, p["w"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )

    adapted, trainable, frozen = started(forward, {"w": normal(3, 2, 4)}, x, variant, "w")
    keys = jax.random.split(KEY, 4000)
    plain = adapted.apply(trainable, frozen, x)
    dropped = jax.vmap(lambda key: adapted.apply(trainable, frozen, x, dropout_key=key))(keys)
    assert not np.allclose(dropped[0], plain)
    spread = dropped.std(0) / len(keys) ** 0.5
    assert np.all(abs(dropped.mean(0) - plain) < 6 * spread + 1e-12)


# -- what "all-linear" leaves out ------------------------------------------------------------------


def test_a_projection_onto_the_number_of_positions_is_no_output_embedding():
    def forward(p, ids):
        x = p["tokens"][ids] + p["positions"][jnp.arange(ids.shape[1])][None]
        return jnp.tanh(x) @ p["projection"]

    params = {"tokens": normal(50, 4), "positions": normal(9, 4), "projection": normal(4, 9)}
    ids = jnp.zeros((2, 3), int)
    assert [p for p, use in lj.discover(forward, params, ids).items() if use.is_linear] == [
        "projection"
    ]
    head = {**params, "projection": normal(4, 50)}
    assert not any(use.is_linear for use in lj.discover(forward, head, ids).values())
    # Where the inputs say the positions, too, tokens are those of which there are more.
    given = lambda p, ids: jnp.tanh(p["tokens"][ids] + p["positions"][ids]) @ p["projection"]  # noqa: E731
    assert lj.discover(given, params, ids)["projection"].is_linear
    assert not lj.discover(given, head, ids)["projection"].is_linear


def convolutional(p, x):
    for name in ("conv0", "conv1"):
        x = jax.nn.relu(
            lax.conv_general_dilated(
                x, p[name], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )
        )
    return (x * p["scale"][None]).mean(1) @ p["head"]


NET = {
    "conv0": normal(3, 2, 4),
    "conv1": normal(3, 4, 4, seed=1),
    "scale": normal(5, 4, seed=2),
    "head": normal(4, 3, seed=3),
}


def test_convolutions_are_left_out_unless_asked_for():
    x = normal(2, 5, 2)
    with pytest.warns(lj.TrainingWarning, match=r"only the last product .* 2 convolutions"):
        _, trainable, frozen = started(convolutional, NET, x, LoRA(rank=1))
    assert str(lj.summary(trainable, frozen)).splitlines()[-1] == (
        "left out: convolutions (2), arrays without a product, such as biases, norms and positions "
        "(1)"
    )
    found = started(convolutional, NET, x, LoRA(rank=1), "all-linear+conv")
    assert list(found[1]["adapters"]) == ["conv0", "conv1", "head"]
    assert [number for _, number in lj.summary(*found[1:]).left_out] == [1]
    agree(*found, x)


def test_what_a_group_leaves_out_is_named():
    """Each by what it is: a user may have meant some of them, but no biases and norms."""

    def forward(p, x):
        x = x @ jnp.concatenate([p["left"], p["right"]], axis=1) @ (p["m1"] @ p["m2"])
        x = (x * p["scale"][None]).mean(1) + jnp.real(x[:, 0].astype(complex) @ p["complex"])
        return x @ p["head"]

    params = {"left": normal(3, 2), "right": normal(3, 2), "m1": normal(4, 2), "m2": normal(2, 4)}
    params |= {"scale": normal(5, 4), "complex": 1j * normal(4, 4), "head": normal(4, 6)}
    _, trainable, frozen = started(forward, params, normal(2, 5, 3), LoRA(rank=1))
    assert list(trainable["adapters"]) == ["head"]
    assert dict(lj.summary(trainable, frozen).left_out) == {
        "complex arrays": 1,
        "arrays used only by concatenate": 2,
        "weights that only meet other weights": 2,
        "arrays without a product, such as biases, norms and positions": 1,
    }


def test_dropout_that_cannot_act_is_said():
    with pytest.warns(lj.TrainingWarning, match=r"dropout does not act on 'w', whose .*\(mul\)"):
        x, stated = normal(5, 4, 3), {"w": (0, 1)}
        variant = LoRA(rank=1, dropout=0.1)
        started(spectral, {"w": normal(4, 2, 3)}, x, variant, "w", axes=stated)
