"""A bank of adapters: each row of a batch computes what its adapter computes alone."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import own_code
import pytest
from bank_model import (
    SHAPES,
    STACK,
    assert_rows_are_those_alone,
    drawn,
    filled,
    forward,
    inputs,
    merged,
    moved,
    same_base,
    trained,
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from support import stored_adapters as stored

import lora_jax as lj
import variants
from lora_jax.compiled.jaxpr_costs import product_flops
from lora_jax.serving import bank_arrays, grouped_matmul
from lora_jax.transform.placement import base_of
from lora_jax.variant import Factors
from variants.dora import DoRA
from variants.oft import OFT


@pytest.fixture(scope="module")
def params():
    with jax.enable_x64(True):
        return drawn(SHAPES)


@pytest.fixture(scope="module")
def mixed(params):
    """Adapters of other ranks, scales, targets and layers, one with a head of its own."""
    lora, dora = variants.make("lora", rank=2), variants.make("dora", rank=2)
    with jax.enable_x64(True):
        return [
            trained(params, lora, STACK, 1),
            trained(
                params, variants.make("rslora", rank=3), [STACK, "table"], 2, also_train="head"
            ),
            trained(params, variants.make("pissa", rank=2), ["table", "head"], 3),
            trained(params, None, {lj.layers(STACK, 1): variants.make("lora", rank=1)}, 4),
            trained(params, dora, "all-linear", 5),
            trained(
                params, dataclasses.replace(dora, initialization="pissa"), ["head", "table"], 6
            ),
            trained(params, variants.make("ia3", biases=True), STACK, 7),
            trained(params, None, {lj.layers(STACK, 0): variants.make("hira", rank=2)}, 8),
            trained(params, dataclasses.replace(dora, rank=1, max_rank=3), "head", 9),
        ]


@pytest.mark.usefixtures("x64")
class TestRows:
    def test_each_has_its_own_adapter(self, mixed, params):
        rows = [3, 0, 5, 1, 1, 8, 2, 4, 9, 7, 6, 2]
        assert_rows_are_those_alone(filled(params, mixed), [params, *merged(mixed)], rows)

    @pytest.mark.parametrize("way", grouped_matmul.NAMES)
    def test_all_ways_to_multiply(self, way, mixed, params):
        some = mixed[:3]
        bank = filled(params, some, way=way)
        assert_rows_are_those_alone(bank, [params, *merged(some)], [3, 0, 1, 2, 1, 3])
        program = jax.make_jaxpr(lj.Bank.apply)(bank, jnp.arange(3), *inputs(3))
        assert ("ragged_dot" in str(program)) == (way == "ragged")

    def test_every_variant_may_be_in_a_bank(self, params):
        """Those with a rank are computed together; the others one by one. PiSSA is for all that
        differ from LoRA in how they start."""
        small = {"rank": 2, "target_rank": 1, "frequencies": 5}
        found = []
        for seed, name in enumerate((*own_code.names(), "pissa")):
            usual = variants.make(name)
            own = {field: size for field, size in small.items() if hasattr(usual, field)}
            if usual.adapts and not usual.needs:  # with data they make the same factors
                found.append(trained(params, variants.make(name, **own), STACK, seed))
        bank = filled(params, found)
        assert len(bank.held.methods) < 16
        assert_rows_are_those_alone(bank, [params, *merged(found)], range(len(found) + 1))

    def test_dora_costs_what_lora_costs(self, params):
        """Its norms are made when an adapter is put into the bank, in no step."""
        programs = []
        for name in ("lora", "dora"):
            found = [trained(params, variants.make(name, rank=2), STACK, 1)]
            bank = filled(params, found, way=grouped_matmul.USUAL)
            programs.append(jax.make_jaxpr(lj.Bank.apply)(bank, jnp.arange(2), *inputs(2)))
        lora, dora = (product_flops(each.jaxpr) for each in programs)
        assert lora == dora > 0

    def test_a_method_that_no_row_needs_is_not_computed(self, params):
        called = []

        class Noted(OFT):
            def dot(self, x, base, factors, *, dropout_key=None):
                jax.debug.callback(lambda: called.append(True))
                return super().dot(x, base, factors, dropout_key=dropout_key)

        bank = filled(params, [trained(params, Noted(block_size=2), STACK, 1)])
        many = jax.jit(lj.Bank.apply)
        one = jax.jit(lambda bank, slot, *batch: bank.one(slot)(*batch))
        for run, none, some in ((many, [0, 0], [0, 1]), (one, 0, 1)):
            called.clear()
            for slots, needed in ((none, False), (some, True)):
                jax.block_until_ready(run(bank, jnp.array(slots), *inputs(2)))
                jax.effects_barrier()
                assert bool(called) == needed

    def test_matrices_of_a_stack_that_are_multiplied_at_once(self):
        """Each has its own slots; methods that are computed apart must not mix them."""

        def forward(params, x):
            return jnp.einsum("bki,kio->bko", x, params["w"])

        random = np.random.default_rng(0)
        params = {"w": jnp.asarray(random.standard_normal((3, 6, 4)))}
        x = jnp.asarray(random.standard_normal((4, 3, 6)))
        found = []
        for seed, method in enumerate((OFT(block_size=2), variants.make("dora", rank=2))):
            adapted = lj.adapt(forward, method, "w")
            trainable, frozen = adapted.init(jax.random.key(seed), params, x)
            found.append((adapted, (moved(trainable, seed), frozen)))
        bank = lj.Bank(forward, params, capacity=2, max_rank=4)
        for slot, (_, adapter) in enumerate(found, 1):
            bank = bank.put(slot, adapter)
        weights = [params, *(adapted.merge(*adapter) for adapted, adapter in found)]
        ids = [0, 1, 2, 1]
        expected = [forward(weights[slot], row[None])[0] for slot, row in zip(ids, x, strict=True)]
        got = jax.jit(lj.Bank.apply)(bank, jnp.array(ids), x)
        np.testing.assert_allclose(got, expected, atol=1e-12)

    @pytest.mark.parametrize("quantize", [{}, {"w": lj.NF4(block=8)}], ids=["narrow", "nf4"])
    def test_dora_on_narrow_and_quantised_weights(self, quantize):
        """Its norm, made by NumPy at `put`, is that of the program that the adapter runs alone."""

        def forward(params, x):
            return x @ params["w"]

        random = np.random.default_rng(0)
        w, x = (jnp.asarray(random.standard_normal(n), jnp.bfloat16) for n in ((16, 8), (3, 16)))
        adapted = lj.adapt(forward, variants.make("dora", rank=2), "w", quantize=quantize)
        trainable, frozen = adapted.init(jax.random.key(0), {"w": w}, x)
        random = np.random.default_rng(1)
        trainable = jax.tree.map(
            lambda leaf: leaf + jnp.asarray(0.3 * random.standard_normal(leaf.shape), leaf.dtype),
            trainable,
        )
        bank = lj.Bank(forward, (trainable, frozen), capacity=1, max_rank=2)
        bank = bank.put(1, (trainable, frozen))
        got = jax.jit(lj.Bank.apply)(bank, jnp.ones(3, int), x)
        wanted = jax.jit(adapted.apply)(trainable, frozen, x)
        size = np.abs(np.asarray(wanted, float)).max()
        np.testing.assert_allclose(got.astype(float), wanted.astype(float), atol=0.02 * size)
        gain = bank.held.arrays[next(key for key in bank.held.arrays if key.name == "gain")]
        norm = DoRA(rank=2).norm(
            base_of(frozen.spec.placements[0], frozen.base["w"]),
            Factors(trainable["adapters"]["w"], frozen.constants["w"]),
        )
        np.testing.assert_allclose(gain[1], trainable["adapters"]["w"]["m"] / norm, rtol=1e-5)

    def test_a_method_whose_plain_lora_has_a_higher_rank(self, params):
        """LoHa of rank 3 is plain LoRA of rank 9: beside one that fits, it keeps its products."""
        loha = [variants.make("loha", rank=rank) for rank in (2, 3)]
        found = [trained(params, each, [STACK, "head"], 1) for each in loha]
        bank = filled(params, found)
        assert len(bank.held.methods) == 2
        assert_rows_are_those_alone(bank, [params, *merged(found)], [2, 0, 1, 2])

    def test_a_method_whose_rows_belong_to_blocks(self, params):
        """GraLoRA of rank 4 is plain LoRA of rank 8; rows at its end would be of other blocks."""
        found = [trained(params, variants.make("gralora", rank=4, blocks=2), [STACK, "head"], 1)]
        bank = filled(params, found, max_rank=6)
        assert_rows_are_those_alone(bank, [params, *merged(found)], [1, 0, 1])
        with pytest.raises(ValueError, match="has rank 4, and the bank max_rank=2: make it larger"):
            filled(params, found, max_rank=2)

    def test_a_quantised_base(self, params):
        lora = variants.make("lora", rank=2)
        quantize = {STACK: lj.NF4(block=8)}
        adapted, adapter = trained(params, lora, STACK, quantize=quantize)
        bank = lj.Bank(forward, adapter, capacity=2, max_rank=2).put(2, adapter)
        each = [adapted.disable(*adapter), None, *merged([(adapted, adapter)])]
        assert_rows_are_those_alone(bank, each, [2, 0, 2])
        with pytest.raises(ValueError, match="on a base with another 'layers/kernel': quantised"):
            lj.Bank(forward, params).put(1, adapter)
        stored = bank.base.base[STACK]
        for name, own in stored.items():  # what they have in common is not all
            changed = {**stored, name: own + jnp.ones((), own.dtype)}
            other = dataclasses.replace(adapter[1], base={**adapter[1].base, STACK: changed})
            with pytest.raises(ValueError, match="on another base: 'layers/kernel' has other numb"):
                bank.put(1, (adapter[0], other))
        with_head = trained(params, lora, STACK, 1, quantize=quantize, also_train="head")
        bank = bank.put(1, with_head[1])  # beside one that keeps the base's
        assert_rows_are_those_alone(bank, [each[0], *merged([with_head]), each[2]], [2, 0, 1])
        with pytest.raises(ValueError, match=r"adapter which trains 'head' in full, .* give the"):
            lj.Bank(forward, with_head[1])

    def test_on_a_mesh(self, mixed, params):
        """Weights and rows divided over devices: the same outputs."""
        axes = {"axis_types": (AxisType.Auto,) * 2}
        mesh, each = jax.make_mesh((4, 2), ("data", "model"), **axes), [mixed[0], mixed[4]]
        on = lambda spec: lambda x: jax.device_put(np.asarray(x), NamedSharding(mesh, spec))  # noqa: E731
        divided = jax.tree.map(lambda x: on(P(*[None] * (x.ndim - 1), "model"))(x), params)
        moved = [
            (
                adapted,
                (trainable, dataclasses.replace(frozen, base=same_base(frozen.base, divided))),
            )
            for adapted, (trainable, frozen) in each
        ]
        ids, batch = jnp.asarray([0, 1, 2, 2, 1, 0, 1, 2]), inputs(8)
        apply = jax.jit(lj.Bank.apply)
        expected = apply(filled(params, each), ids, *batch)
        got = apply(filled(divided, moved), *map(on(P("data")), (ids, *batch)))
        chex.assert_trees_all_close(got, expected, atol=1e-12)

    def test_explicit_axes_are_refused(self, mixed, params):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
        on = NamedSharding(mesh, P("data"))
        ids, *batch = (jax.device_put(np.asarray(x), on) for x in (jnp.arange(4), *inputs(4)))
        with pytest.raises(
            ValueError, match=r"AxisType\.Explicit: make the mesh with AxisType\.Auto"
        ):
            filled(params, mixed[:1]).apply(ids, *batch)

    def test_what_is_no_slot_is_no_number(self, mixed, params):
        outputs = filled(params, mixed[:1]).apply(jnp.array([1, -1, 2]), *inputs(3))
        finite = jax.tree.map(lambda x: np.isfinite(x).all(axis=1).tolist(), outputs)
        assert finite == {"classes": [True, False, False], "tokens": [True, False, False]}


@pytest.mark.parametrize("way", grouped_matmul.NAMES)
def test_a_product_that_asks_for_float32_is_not_rounded_before(way):
    """The head of a decoder in bfloat16 asks so. All sums are exact, and have more than 8 bits."""

    def head(params, x):
        numbers = (((1,), (0,)), ((), ()))
        return jax.lax.dot_general(x, params["w"], numbers, preferred_element_type=jnp.float32)

    random = np.random.default_rng(0)
    w, a, x = (random.integers(-3, 4, shape) for shape in ((8, 5), (2, 8), (3, 8)))
    b = 1 + random.integers(0, 128, (2, 5)) / 128
    params = {"w": jnp.asarray(w, jnp.bfloat16)}
    adapted = lj.adapt(head, variants.make("lora", rank=2, alpha=2.0), "w")
    rows = jnp.asarray(x, jnp.bfloat16)
    trainable, frozen = adapted.init(jax.random.key(0), params, rows)
    moved = {"a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.float32)}
    adapter = {**trainable, "adapters": {"w": moved}}, frozen
    bank = lj.Bank(head, params, capacity=2, max_rank=2, way=way).put(2, adapter)
    found = jax.jit(lj.Bank.apply)(bank, jnp.asarray([2, 0, 2]), rows)
    expected = np.stack([x[0] @ (w + a.T @ b), x[1] @ w, x[2] @ (w + a.T @ b)])
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(expected, np.asarray(jnp.asarray(expected, jnp.bfloat16)))


def test_what_is_put_and_removed_compiles_nothing(compilations):
    params = jax.tree.map(lambda x: x.astype(jnp.float32), drawn(SHAPES))
    found = [
        trained(params, variants.make("lora", rank=rank), targets, rank)
        for rank, targets in ((2, STACK), (3, ["table", STACK]), (1, "table"))
    ]
    bank = filled(params, found[:2], capacity=3)
    apply, batch = jax.jit(lj.Bank.apply), inputs(4)
    batch = batch[0], batch[1].astype(jnp.float32)
    ids = jnp.arange(4)
    before = apply(bank, ids, *batch)
    with compilations() as counted:
        moved = bank.put(3, found[0][1]).put(1, found[2][1]).remove(2)
        after = apply(moved, ids, *batch)
    assert not counted
    chex.assert_trees_all_equal(apply(bank, ids, *batch), before)  # a bank is never changed
    first = jax.tree.map(lambda x: x[:1], before)
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[:1], after), first)
    for row, slot in ((2, 0), (1, 3), (3, 1)):
        one = [x[row : row + 1] for x in batch]
        entry = {1: found[0], 3: found[2]}.get(slot)
        wanted = forward(params, *one) if slot == 0 else entry[0].apply(*entry[1], *one)
        got = jax.tree.map(lambda x, row=row: x[row : row + 1], after)
        chex.assert_trees_all_close(got, wanted, atol=1e-5)


@pytest.mark.usefixtures("x64")
def test_what_no_adapter_needs_leaves_and_may_come_back(mixed, params):
    """The bank is one that never had it, in its program and in what others compute."""
    plain, whole, dora, biased, hira = (mixed[i] for i in (0, 1, 4, 6, 7))
    all_of_them = [plain, whole, dora, biased, hira]
    bank = filled(params, all_of_them)
    fewer = bank.trimmed([1, 5])
    wanted = lj.Bank(forward, params, capacity=5, max_rank=8).put(1, plain[1]).put(5, hira[1])
    assert jax.tree.structure(fewer) == jax.tree.structure(wanted)
    assert fewer.trimmed([1, 5]) is fewer and bank.trimmed(range(1, 6)) is bank
    again = fewer.put(3, dora[1]).put(2, biased[1])
    each = [params, *merged([plain, biased, dora, hira, hira])]
    assert_rows_are_those_alone(again, each, [5, 3, 0, 1, 2])
    none = bank.trimmed([])
    assert jax.tree.structure(none) == jax.tree.structure(lj.Bank(forward, params, 5, 8))


def test_what_does_not_fit_is_named(params):
    with jax.enable_x64(True):
        lora = variants.make("lora", rank=3)
        wider = {**params, "head": jnp.zeros((8, 5))}
        moved = {**params, "table": params["table"].at[0, 0].add(1)}
        for base, also, rank, said in (
            (params, (), 2, r"'layers/kernel' has rank 3, and .* max_rank=2"),
            (wider, "head", 4, r"trains another 'head': float64\[8, 5\], and the "),
            (moved, (), 4, "on another base: 'table' has other numbers"),
            ({**params, "other": params["head"]}, (), 4, "base with 'other', which the bank does"),
        ):
            _, adapter = trained(base, lora, STACK, also_train=also)
            bank = lj.Bank(forward, params, capacity=2, max_rank=rank)
            with pytest.raises(ValueError, match=said):
                bank.put(1, adapter)
        for slot in (0, 3):
            with pytest.raises(ValueError, match=rf"slot {slot}: .* slots 1 to 2"):
                bank.put(slot, adapter)
        with pytest.raises(ValueError, match=r"an input of shape \(2, 3\) has not the 3 rows"):
            bank.apply(jnp.zeros(3, int), *inputs(2))
        with pytest.raises(ValueError, match="way 'gathr' is unknown; nearest: 'gather'"):
            lj.Bank(forward, params, way="gathr")


@pytest.mark.parametrize("factor", [np.nan, -np.inf, 1e200])
def test_numbers_that_are_not_finite_are_refused(params, factor):
    """They would spoil the rows of others; 1e200 is finite until the product with its scale."""
    with jax.enable_x64(True):
        _, (trainable, frozen) = trained(params, variants.make("lora", rank=2), [STACK, "head"])
        own = {**trainable["adapters"]}
        own["head"] = {**own["head"], "b": own["head"]["b"].at[1, 2].set(factor)}
        constants = {**frozen.constants, "head": {"scale": jnp.asarray(1e200)}}
        adapter = {**trainable, "adapters": own}, dataclasses.replace(frozen, constants=constants)
        with pytest.raises(ValueError, match=r"^'head': .* numbers that are not finite .*float64"):
            lj.Bank(forward, params, capacity=2, max_rank=2).put(1, adapter)


def test_numbers_that_the_dtype_of_a_weight_has_not_are_refused():
    """Float32, in which factors train, has 1e6, and float16, in which they are multiplied, not."""

    def forward(params, x):
        return x @ params["w"]

    params, x = {"w": jnp.ones((2, 3), jnp.float16)}, jnp.ones((1, 2), jnp.float16)
    adapted = lj.adapt(forward, variants.make("lora", rank=1, alpha=1.0), "w")
    trainable, frozen = adapted.init(jax.random.key(0), params, x)
    factors = {"a": jnp.ones((1, 2), jnp.float32), "b": jnp.full((1, 3), 1e6, jnp.float32)}
    adapter = {**trainable, "adapters": {"w": factors}}, frozen
    with pytest.raises(ValueError, match=r"^'w': .* numbers that are not finite .* as float16"):
        lj.Bank(forward, params, capacity=2, max_rank=2).put(1, adapter)


def test_it_says_how_weights_are_computed(mixed, params):
    with jax.enable_x64(True):
        said = filled(params, mixed).explain().splitlines()
    table, stack = (
        next(line for line in said if line.startswith(path)) for path in ("table", STACK)
    )
    assert "lookup, transposed product" in table and "plain LoRA, rescaled" in table
    assert "plain LoRA, rescaled, IA3, HiRA" in stack


def test_it_says_how_long_each_way_takes(mixed, params):
    """Of each shape of products: those of the stack, of the tied table's head, of the head."""
    with jax.enable_x64(True):
        bank = filled(params, mixed[:3], way="ragged")
        heads, _, *lines = bank.timings(rows=2, tokens=3).splitlines()
    assert heads.split()[-6:] == ["gather", "ms", "concat", "ms", "ragged", "ms"]
    cells = [line.split() for line in lines]
    wanted = {"layers/kernel": ["8", "8"], "table": ["8", "11"], "head": ["8", "4"]}
    assert {path: [a, b] for path, a, _, b, *_ in cells} == wanted
    for *_, way, gather, concat in cells:  # the third is not tried on CPUs
        assert way == "ragged" and float(gather) > 0 and float(concat) > 0


@pytest.mark.parametrize("donate", [True, False])
def test_what_is_new_needs_memory_for_every_slot(monkeypatch, donate):
    """As many bytes as the arrays have that are made; twice, if the bank stays."""
    bank = lj.Bank(stored.forward, stored.PARAMS, capacity=3, max_rank=2)
    plain = stored.begun()
    whole = stored.begun(also_train="down/kernel")
    made = bank.put(1, plain)
    before, after = (
        sum(x.nbytes for x in each.held.arrays.values()) for each in (made, made.put(2, whole))
    )
    of_slot = 6 * 3 * 4 + 1  # the parameter's shape, bytes of a number, and whether it trains
    assert after - before == 4 * of_slot
    needed = after - before if donate else 2 * after - before
    monkeypatch.setattr(bank_arrays, "available", lambda: needed - 1)
    with pytest.raises(
        bank_arrays.NoMemoryError, match=r"trains 'down/kernel', .* 4 copies .* take 0\.0 MiB"
    ):
        made.put(2, whole, donate=donate)
    monkeypatch.setattr(bank_arrays, "available", lambda: needed)
    made = made.put(2, whole, donate=donate)
    monkeypatch.setattr(bank_arrays, "available", lambda: 0)
    made.put(3, whole).put(1, plain)  # nothing is new
