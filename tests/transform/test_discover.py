"""What `discover` says about how a function uses its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo.merged
from flax import nnx
from jax import lax
from zoo.case import cases

import lora_jax as lj
from variants.lora import LoRA


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def axes(use: lj.WeightUse) -> tuple:
    return use.stack, use.inputs, use.outputs


@pytest.mark.parametrize(
    ("spec", "weight", "x", "expected"),
    [
        ("bd,df->bf", (4, 6), (3, 4), ((), (0,), (1,))),
        ("bd,fd->bf", (6, 4), (3, 4), ((), (1,), (0,))),
        ("bd,dhk->bhk", (4, 2, 3), (5, 4), ((), (0,), (1, 2))),
        ("bd,hdk->bhk", (2, 4, 3), (5, 4), ((), (1,), (0, 2))),
        ("bd,kdh->bhk", (3, 4, 2), (5, 4), ((), (1,), (0, 2))),
        ("bhk,hkd->bd", (2, 3, 4), (5, 2, 3), ((), (0, 1), (2,))),
        ("bhk,kdh->bd", (3, 4, 2), (5, 2, 3), ((), (0, 2), (1,))),
        ("bhd,hdk->bhk", (2, 4, 3), (5, 2, 4), ((0,), (1,), (2,))),
        ("ebd,edf->ebf", (3, 4, 6), (3, 5, 4), ((0,), (1,), (2,))),
        ("bghd,hgdk->bghk", (2, 3, 4, 5), (2, 3, 2, 4), ((0, 1), (2,), (3,))),
    ],
)
def test_axes_of_an_einsum(spec, weight, x, expected):
    uses = lj.discover(lambda p, x: jnp.einsum(spec, x, p["w"]), {"w": array(*weight)}, array(*x))
    assert axes(uses["w"]) == expected
    assert [str(use) for use in uses["w"].uses] == ["product"]
    assert uses["w"].is_linear and uses["w"].uses[0].merges is None


def model(p, ids, mask):
    x = p["tokens"][ids] + p["positions"][: ids.shape[1]]

    def layer(x, w):
        y = jnp.einsum("btd,dhk->bthk", x, w["query"])
        y = jnp.einsum("bthk,hkd->btd", y, w["out"])
        x = x + jax.nn.relu(y @ w["up"]) @ w["down"].T
        return x * w["scale"], None

    x, _ = lax.scan(jax.checkpoint(layer), x, p["layers"])
    x = jnp.where(mask[..., None], x, 0)
    return x @ p["norm"] + p["bias"], x @ p["head"]


def parameters(vocabulary=50, d=8, layers=3):
    stack = {
        "query": array(layers, d, 2, 4),
        "out": array(layers, 2, 4, d),
        "up": array(layers, d, 16),
        "down": array(layers, d, 16),
        "scale": array(layers, d),
    }
    return {
        "tokens": array(vocabulary, d),
        "positions": array(12, d),
        "layers": stack,
        "norm": array(d, d),
        "bias": array(d),
        "head": array(d, vocabulary),
        "unused": array(2, 2),
    }


INPUTS = (jax.ShapeDtypeStruct((2, 5), jnp.int32), jax.ShapeDtypeStruct((2, 5), jnp.bool_))


def promoting(function):
    """The same function with rank promotion: it is a model of somebody else."""

    def wrapped(*args):
        with jax.numpy_rank_promotion("allow"):
            return function(*args)

    return wrapped


def test_a_model():
    uses = lj.discover(promoting(model), parameters(), *INPUTS)
    assert {path: axes(use) for path, use in uses.items() if use.is_matrix} == {
        "tokens": ((), (0,), (1,)),
        "layers/query": ((0,), (1,), (2, 3)),
        "layers/out": ((0,), (1, 2), (3,)),
        "layers/up": ((0,), (1,), (2,)),
        "layers/down": ((0,), (2,), (1,)),
        "norm": ((), (0,), (1,)),
        "head": ((), (0,), (1,)),
    }
    assert uses["layers/query"].matrix == (8, 8) and uses["layers/query"].stack_shape == (3,)
    assert [str(use) for use in uses["tokens"].uses] == ["lookup"]
    assert list(uses) == list(lj.discover(promoting(model), parameters(), *INPUTS))
    linear = [path for path, use in uses.items() if use.is_linear]
    assert sorted(linear) == sorted(
        ["layers/query", "layers/out", "layers/up", "layers/down", "norm"]
    )


def test_the_table_says_where_and_why_a_weight_is_merged():
    def forward(p, x):
        return jnp.sin(x @ p["w"]) + x @ jnp.sin(p["w"]), x @ p["v"]

    text = str(lj.discover(forward, {"w": array(4, 4), "v": array(4, 6)}, array(3, 4)))
    row_v, row_w = text.splitlines()[2:]
    assert row_w.split()[-1] == "sin" and row_v.split()[-1] == "product"


def all_linear(forward, params, *args):
    return [path for path, use in lj.discover(forward, params, *args).items() if use.is_linear]


def language_model(p, ids):
    x = p["embed"][ids]
    x = jnp.tanh(x @ p["w"])
    return jax.jit(lambda x, head: jax.nn.log_softmax(x @ head))(x, p["head"])


IDS = jax.ShapeDtypeStruct((2, 3), jnp.int32)


def test_all_linear_leaves_out_an_untied_output_embedding():
    params = {"embed": array(50, 8), "w": array(8, 8), "head": array(8, 50)}
    assert all_linear(language_model, params, IDS) == ["w"]
    # The same matrix is a linear layer like others where it does not lead back to tokens:
    classifier = {**params, "head": array(8, 3)}
    assert all_linear(language_model, classifier, IDS) == ["head", "w"]


@pytest.mark.parametrize(
    "last",
    [
        lambda x, head: lax.map(lambda h: h @ head, x),
        lambda x, head: lax.scan(
            lambda c, h: (c + jax.nn.logsumexp(h @ head), None), 0.0, x.reshape(-1, 8)
        )[0],
        lambda x, head: lax.cond(x.sum() > 0, lambda: x @ head, lambda: jnp.zeros((2, 3, 50))),
        lambda x, head: lax.fori_loop(0, x[0, 0, 0].astype(int), lambda i, y: x @ head, x @ head),
        lambda x, head: jax.checkpoint(lambda x: x @ head)(x),
    ],
    ids=["map", "scan", "cond", "while", "remat"],
)
def test_all_linear_leaves_out_an_output_embedding_inside_of_a_loop(last):
    def forward(p, ids):
        x, _ = lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), p["embed"][ids], p["layers"])
        return last(jnp.tanh(x @ p["w"]), p["head"])

    params = {
        "embed": array(50, 8),
        "w": array(8, 8),
        "head": array(8, 50),
        "layers": array(2, 8, 8),
    }
    assert all_linear(forward, params, IDS) == ["layers", "w"]


def test_all_linear_leaves_out_a_tied_embedding():
    def forward(p, ids):
        return jnp.tanh(p["embed"][ids] @ p["w"]) @ p["embed"].T

    uses = lj.discover(forward, {"embed": array(50, 8), "w": array(8, 8)}, IDS)
    assert [path for path, use in uses.items() if use.is_linear] == ["w"]
    assert uses["embed"].output_embedding
    assert [str(use) for use in uses["embed"].uses] == ["lookup", "transposed product"]


def test_a_square_inner_layer_of_the_size_of_the_table_is_no_output_embedding():
    def forward(p, ids):
        x = p["embed"][ids] @ p["up"]
        return jnp.tanh(x) @ p["down"]

    params = {"embed": array(32, 8), "up": array(8, 32), "down": array(32, 8)}
    assert all_linear(forward, params, IDS) == ["down", "up"]


def test_all_linear_takes_what_activations_meet_and_nothing_else():
    def forward(p, x):
        y = lax.conv_general_dilated(
            x, p["conv"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        y = y @ (p["a"] @ p["b"])
        return jax.vmap(lambda w: y @ w)(p["stack"]), p["added"] + y

    params = {
        "conv": array(3, 4, 4),
        "a": array(4, 4),
        "b": array(4, 4),
        "stack": array(2, 4, 4),
        "added": array(2, 5, 4),
    }
    assert all_linear(forward, params, array(2, 5, 4)) == ["stack"]


MERGED = cases(zoo.merged)
NO_LAYERS = {"fast_weights", "convolution_with_the_weight_on_the_left"}


@pytest.mark.parametrize("name", MERGED)
def test_all_linear_takes_what_is_merged_before_activations_meet_it(x64, name):
    case = MERGED[name]()
    linear = all_linear(case.forward, case.params, *case.args)
    assert linear == ([] if name.split(".")[-1] in NO_LAYERS else list(case.params))


def test_the_axes_of_repeated_weights():
    case = MERGED["merged.repeated_heads"]()
    uses = lj.discover(case.forward, case.params, *case.args)
    assert axes(uses["w"]) == ((), (1,), (0, 2))
    case = MERGED["merged.repeated_for_a_batch"]()
    uses = lj.discover(case.forward, case.params, *case.args)
    assert axes(uses["w"]) == ((), (0,), (1,))
    assert "broadcast_in_dim" in {use.merges for use in uses["w"].uses}


def rows_meet_a_weight(rows):
    """As DeBERTa's distances: rows of the table meet a weight before they meet activations."""
    return lambda w, p, x: x @ (w[rows] @ p["square"]).T


MADE_OF_WEIGHTS = {
    "product": ((4, 5), lambda w, p, x: x @ w, (0, 1)),
    "transposed": ((5, 4), lambda w, p, x: x @ w.T, (1, 0)),
    "transposed, a part": ((5, 4), lambda w, p, x: x @ w[1:4].T, (1, 0)),
    "transposed, joined": ((5, 4), lambda w, p, x: x @ jnp.concatenate([w, w]).T, (1, 0)),
    "left factor": ((4, 4), lambda w, p, x: x @ (w @ p["square"]), (0, 1)),
    "right factor": ((4, 5), lambda w, p, x: x @ (p["square"] @ w), (0, 1)),
    "before a constant": ((4, 5), lambda w, p, x: x @ (w @ np.ones((5, 3), "float32")), (0, 1)),
    "lookup": ((9, 4), lambda w, p, x: w[x.astype(int)], (0, 1)),
    "lookup of columns": ((4, 9), lambda w, p, x: jnp.take(w, x.astype(int), 1), (1, 0)),
    "tied": ((9, 4), lambda w, p, x: w[x.astype(int)] @ w.T, (0, 1)),
    "both ways": ((4, 5), lambda w, p, x: x @ w @ w.T, (0, 1)),
    "fixed order": ((5, 4), lambda w, p, x: x @ w[np.arange(5)[::-1]].T, (1, 0)),
    "all rows": ((9, 4), rows_meet_a_weight(slice(None)), (0, 1)),
    "some rows": ((9, 4), rows_meet_a_weight(slice(2, 7)), (0, 1)),
}


@pytest.mark.parametrize("name", MADE_OF_WEIGHTS)
def test_the_axes_of_a_weight_that_meets_another_weight_first(name):
    """What the activations do with the result says which axes are which, also of a part of it."""
    shape, use, (inputs, outputs) = MADE_OF_WEIGHTS[name]
    params = {"w": array(*shape), "gain": array(1, 1), "square": array(4, 4)}
    uses = lj.discover(lambda p, x: use(p["w"] * p["gain"], p, x), params, array(3, 4))
    assert axes(uses["w"]) == ((), (inputs,), (outputs,))


def test_a_weight_that_a_loop_changes_is_merged_before_it():
    def forward(p, x):
        return lax.scan(lambda w, _: (0.9 * w, x @ w), p["w"], length=3)[1]

    uses = lj.discover(forward, {"w": array(4, 3)}, array(2, 4))["w"]
    assert axes(uses) == ((), (0,), (1,))
    assert [(str(use), use.merges) for use in uses.uses] == [
        ("scan carry", "scan carry"),
        ("product", "scan carry"),
    ]


def test_a_learned_start_of_a_recurrence_is_no_layer():
    def forward(p, xs):
        def step(h, x):
            h = jnp.tanh(x @ p["wx"] + h @ p["wh"])
            return h, None

        return lax.scan(step, p["start"], xs)[0]

    params = {"wx": array(4, 3), "wh": array(3, 3), "start": array(2, 3)}
    assert all_linear(forward, params, array(5, 2, 4)) == ["wh", "wx"]


@pytest.mark.parametrize(
    ("forward", "shape"),
    [
        (lambda p, x: x + p["b"], (3,)),
        (lambda p, x: x @ jnp.concatenate([p["b"], p["c"]], axis=1), (3, 4)),
    ],
)
def test_all_linear_with_nothing_to_select(forward, shape):
    adapted = lj.adapt(forward, LoRA(), "all-linear")
    with pytest.raises(ValueError, match=r"'all-linear' selects nothing: .* no weight as it is"):
        adapted.init(jax.random.key(0), dict.fromkeys("bc", jnp.ones(shape)), jnp.ones(3))


def test_only_shapes_matter():
    params = {"w": array(4, 6)}
    args = (array(3, 4), {"flag": True, "name": "text", "none": None})

    def forward(p, x, options, *, scale):
        assert options == args[1]
        return x @ p["w"] * scale

    uses = lj.discover(forward, params, *args, scale=2.0)
    assert uses == lj.discover(forward, {"w": jnp.ones((4, 6))}, jnp.ones((3, 4)), args[1], scale=1)


@pytest.mark.parametrize(
    "look_up",
    [
        lambda table, ids: table[ids],
        lambda table, ids: jax.vmap(lambda i: table[i])(ids),
        lambda table, ids: jax.vmap(lambda i: lax.dynamic_index_in_dim(table, i))(ids),
        lambda table, ids: jax.jit(jnp.take, static_argnames="axis")(table, ids, axis=0),
        lambda table, ids: table.at[ids].get(mode="fill", fill_value=0),
    ],
)
def test_ways_to_look_up(look_up):
    ids = jax.ShapeDtypeStruct((5,), jnp.int32)
    uses = lj.discover(lambda p, ids: look_up(p["table"], ids), {"table": array(7, 4)}, ids)
    assert [(str(use), use.merges) for use in uses["table"].uses] == [("lookup", None)]
    assert axes(uses["table"]) == ((), (0,), (1,))


@pytest.mark.parametrize(
    ("forward", "used"),
    [
        (lambda p, x: x * p["w"], "mul"),
        (lambda p, x: x + p["w"], "add"),
        (lambda p, x: jnp.concatenate([x, p["w"]]), "concatenate"),
        (lambda p, x: x @ p["v"] + p["w"][:1], "add"),
        (lambda p, x: x @ jnp.ones_like(p["w"]), "not at all"),
    ],
)
def test_a_selected_weight_that_cannot_be_adapted(forward, used):
    params = {"w": jnp.ones((4, 4)), "v": jnp.ones((4, 4))}
    adapted = lj.adapt(forward, LoRA(rank=1), "w")
    with pytest.raises(ValueError, match=rf"'w' is selected, but no product .*({used})"):
        adapted.init(jax.random.key(0), params, jnp.ones((4, 4)))


def test_nnx_paths_have_no_value_at_their_end():
    forward, params = lj.from_nnx(nnx.Linear(4, 6, rngs=nnx.Rngs(0)))
    assert list(lj.discover(forward, params, array(3, 4))) == ["bias", "kernel"]
