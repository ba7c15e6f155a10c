"""What compiled programs move: against programs whose collectives are known by construction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec as P
from make_fixtures.tpu_programs import FIXTURES, PROGRAMS, RING, mesh_of

from lora_jax.compiled.collectives import Total, by_kind, collectives
from lora_jax.compiled.hlo import Shape, parse

OVER_A = {frozenset(each) for each in ((0, 4), (1, 5), (2, 6), (3, 7))}
OVER_B = {frozenset(range(4)), frozenset(range(4, 8))}


@pytest.fixture(scope="module")
def mesh():
    return mesh_of(jax.devices())


def compiled(function, arguments):
    return collectives(jax.jit(function).lower(*arguments).compile().as_text())


def tpu(name):
    return collectives((FIXTURES / f"tpu_{name}.txt").read_text())


def array(mesh, shape, *spec, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))


def sets(collective):
    return {frozenset(group) for group in collective.groups}


def module(body, *computations, head=""):
    """The text of a program: other computations, and the entry with its one parameter."""
    lines = "\n".join(f"  {line}" for line in body)
    entry = f"ENTRY %main (p: f32[4]) -> f32[4] {{\n  %p = f32[4]{{0}} parameter(0)\n{lines}\n}}"
    return "\n\n".join([f"HloModule test, num_partitions=8{head}", *computations, entry])


# ---- programs that jax compiles ----------------------------------------------------------------


def test_each_kind_on_simulated_devices(mesh):
    found = {each.kind: each for each in compiled(*PROGRAMS["each_kind"](mesh))}
    array, float32 = (32, 128), 4
    size = 32 * 128 * float32
    expected = {
        "all-reduce": ([array], [array], size, OVER_B),
        "all-gather": ([array], [(64, 128)], 2 * size, OVER_A),
        "reduce-scatter": ([array], [(8, 128)], size, OVER_B),
        "all-to-all": ([(32, 32)] * 4, [(32, 32)] * 4, size, OVER_B),
        "collective-permute": ([array], [array], size, OVER_B),
    }
    assert found.keys() == expected.keys()
    for kind, (operands, results, moved, groups) in expected.items():
        each = found[kind]
        assert each.operands == tuple(Shape("f32", dims) for dims in operands), kind
        assert each.results == tuple(Shape("f32", dims) for dims in results), kind
        assert (each.bytes, each.times, each.exact) == (moved, 1, True), kind
        assert sets(each) == groups, kind
    assert found["all-reduce"].op_name == "jit(function)/shard_map/psum"


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_loops_multiply(mesh, backend):
    """TPUs' programs do not note how often a loop turns: its counter is followed."""
    found = tpu("nested") if backend == "tpu" else compiled(*PROGRAMS["nested"](mesh))
    assert by_kind(found) == {
        "all-gather": Total(5, 5 * 256 * 128 * 4, True),
        "all-reduce": Total(5, 5 * 8 * 128 * 4, True),
        "collective-permute": Total(15, 15 * 8 * 128 * 4, True),
    }
    names = {each.kind: each.op_name.rpartition("/")[2] for each in found}
    assert names == {
        "all-gather": "all_gather",
        "all-reduce": "psum",
        "collective-permute": "ppermute",
    }


def test_a_sum_over_a_sharded_axis(mesh):
    """GSPMD: (256, 512) @ (512, 1024), what is contracted sharded four ways."""
    arguments = array(mesh, (256, 512), "a", "b"), array(mesh, (512, 1024), "b", None)
    (found,) = compiled(lambda x, w: x @ w, arguments)
    assert (found.kind, found.bytes, found.times) == ("all-reduce", 128 * 1024 * 4, 1)
    assert sets(found) == OVER_B and found.op_name.endswith("dot_general")


def test_a_step_of_sharded_layers(mesh):
    """On CPUs gradients are summed whole, and all is float32; TPUs keep a part, in bfloat16."""
    weight, activation = 1024 * 256, 256 * 1024
    cpu = by_kind(compiled(*PROGRAMS["layers"](mesh)))
    assert cpu == {
        "all-gather": Total(4 * 6, 4 * 6 * weight * 4, True),
        "all-reduce": Total(3 * 6, (2 * activation + 2 * weight) * 6 * 4, True),
    }
    found = tpu("layers")
    assert by_kind(found) == {
        "all-gather": Total(4 * 6, 4 * 6 * weight * 2, True),
        "all-reduce": Total(2 * 6, 2 * activation * 6 * 2, True),
        "reduce-scatter": Total(6, 2 * weight * 6 * 2, True),
    }
    for each in found:
        assert sets(each) == (OVER_B if each.kind == "all-reduce" else OVER_A), each
        assert each.op_name.endswith("dot_general"), each
    (scattered,) = [each for each in found if each.kind == "reduce-scatter"]
    assert scattered.results == (Shape("bf16", (512, 256)), Shape("bf16", (256, 512)))


def test_what_tpus_make_of_each_kind():
    """Sums over the same devices are one, of which one part is then cut: a small reduce-scatter."""
    found = {each.kind: each for each in tpu("each_kind")}
    size = 32 * 128 * 4
    assert {kind: each.bytes for kind, each in found.items()} == {
        "all-gather": 2 * size,
        "all-reduce": 2 * size,
        "all-to-all": size,
        "collective-permute": size,
    }
    assert found["collective-permute"].name == "collective-permute-start"
    assert found["collective-permute"].results == (Shape("f32", (32, 128)),)
    assert sets(found["all-gather"]) == OVER_A
    assert {each.times for each in found.values()} == {1}


def test_groups_are_places_in_the_mesh(mesh):
    """Not devices' ids: a mesh of the same devices in another order has the same groups."""
    turned = mesh_of(np.roll(np.asarray(jax.devices()), 3))
    for each in (mesh, turned):
        function, arguments = PROGRAMS["each_kind"](each)
        found = {c.kind: c for c in compiled(function, arguments)}
        assert sets(found["all-gather"]) == OVER_A and sets(found["all-reduce"]) == OVER_B


def test_where_the_number_of_executions_is_not_known(mesh):
    def until(x):
        return lax.while_loop(lambda c: (c**2).sum() < 100, lambda c: c + lax.psum(c, "b"), x)

    def either(x):
        permuted = lambda c: lax.ppermute(c, "b", RING)  # noqa: E731
        return lax.cond(x[0, 0] > 0, lambda c: lax.psum(c, "a"), permuted, x)

    specs = {"in_specs": P("a", "b"), "out_specs": P("a", "b"), "check_vma": False}
    x = array(mesh, (16, 512), "a", "b")
    found = compiled(jax.shard_map(until, mesh=mesh, **specs), [x])
    assert by_kind(found) == {"all-reduce": Total(1, 8 * 128 * 4, False)}
    found = compiled(jax.shard_map(either, mesh=mesh, **specs), [x])
    assert by_kind(found) == {
        "all-reduce": Total(1, 8 * 128 * 4, False),
        "collective-permute": Total(1, 8 * 128 * 4, False),
    }


def test_a_program_of_one_device_moves_nothing():
    assert compiled(lambda x: x + 1, [jnp.ones(3)]) == []
    assert by_kind([]) == {}


# ---- forms that only some versions and backends write --------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{{0,4},{1,5},{2,6},{3,7}}", OVER_A),
        ("{}", {frozenset(range(8))}),
        ("[2,4]<=[8]", OVER_B),
        ("[4,2]<=[2,4]T(1,0)", OVER_A),
        ("mesh['a'=2,'b'=4] {'b'}", OVER_B),
        ("mesh['a'=2,'b'=4] {'a'}", OVER_A),
        ("mesh['a'=2,'b'=4] {'a','b'}", {frozenset(range(8))}),
        ("mesh['x'=8] {'x':(2)4}", OVER_B),
        ("mesh['x'=8] {'x':(1)2}", OVER_A),
        ("mesh['b'=4,'a'=2], device_ids=([2,4]T(1,0)) {'a'}", OVER_A),
        ("mesh['b'=4,'a'=2], device_ids=(0,4,1,5,2,6,3,7) {'b'}", OVER_B),
    ],
)
def test_groups_however_written(written, expected):
    line = "ROOT %sum = f32[4]{0} all-reduce(%p), replica_groups=" + written + ", to_apply=%add"
    (found,) = collectives(module([line]))
    assert sets(found) == expected


def test_a_permutations_groups_are_what_it_connects():
    line = "ROOT %x = f32[4] collective-permute(%p), source_target_pairs={{0,1},{2,3},{1,2},{5,5}}"
    (found,) = collectives(module([line]))
    assert sets(found) == {frozenset(range(4)), frozenset([5])}


def test_asynchronous_forms():
    wrapped = """%wrapped (q: f32[4]) -> f32[1] {
  %q = f32[4]{0} parameter(0)
  ROOT %inner = f32[1]{0} reduce-scatter(%q), replica_groups={{0,1,2,3}}, to_apply=%add
}"""
    found = collectives(
        module(
            [
                "%a = (f32[4]{0}, f32[32]{0}) all-gather-start(%p), replica_groups={}",
                "%a.1 = f32[32]{0} all-gather-done(%a)",
                "%b = ((f32[4], f32[4]), (f32[32], f32[32])) all-gather-start(%p, f32[4] %p)",
                "%b.1 = (f32[32]{0}, f32[32]{0}) all-gather-done(%b)",
                "%c = f32[4]{0} all-reduce-start(%p), to_apply=%add",
                "%c.1 = f32[4]{0} all-reduce-done(%c)",
                "%d = ((f32[4]{0}), f32[1]{0}, u32[]) async-start(%p), calls=%wrapped",
                "%d.1 = f32[1]{0} async-done(%d), calls=%wrapped",
                "%e = ((f32[4]{0}), f32[4]{0}, u32[]) all-to-all-start(%p), dimensions={0}",
                "ROOT %e.1 = f32[4]{0} all-to-all-done(%e)",
            ],
            wrapped,
        )
    )
    assert [(each.name, each.kind, each.bytes) for each in found] == [
        ("a", "all-gather", 128),
        ("b", "all-gather", 256),
        ("c", "all-reduce", 16),
        ("inner", "reduce-scatter", 16),
        ("e", "all-to-all", 16),
    ]
    assert found[3].results == (Shape("f32", (1,)),) and max(map(len, found[3].groups)) == 4


def loop(start, step, bound, direction="LT", operation="add", kept=False):
    """A loop with one permutation a turn, that counts from start by step as far as bound.

    With `kept`, step and bound are part of its state.
    """
    state = "(s32[], s32[], s32[])"
    of = [f"%s{i} = s32[] get-tuple-element(%s), index={i}" for i in range(3)]
    step, bound = f"%k = s32[] constant({step})", f"%n = s32[] constant({bound})"
    inner = ("%s1", "%s2") if kept else ("%k", "%n")

    def lines(*each):
        return "".join(f"  {line}\n" for line in each)

    body = f"%body (s: {state}) -> {state} {{\n" + lines(
        f"%s = {state} parameter(0)",
        *of,
        step,
        "%x = f32[4]{0} iota(), iota_dimension=0",
        "%y = f32[4]{0} collective-permute(%x), source_target_pairs={{0,1}}",
        f"%next = s32[] {operation}(%s0, {inner[0]})",
        f"ROOT %t = {state} tuple(%next, %s1, %s2)",
    )
    test = f"%test (s: {state}) -> pred[] {{\n" + lines(
        f"%s = {state} parameter(0)",
        *of,
        bound,
        f"ROOT %c = pred[] compare(%s0, {inner[1]}), direction={direction}",
    )
    entry = [
        f"%i = s32[] constant({start})",
        step,
        bound,
        f"%t = {state} tuple(%i, %k, %n)",
        f"ROOT %w = {state} while(%t), condition=%test, body=%body",
    ]
    return module(entry, body + "}", test + "}")


@pytest.mark.parametrize(
    ("turns", "form"),
    [
        (80, {"start": 0, "step": 1, "bound": 80}),
        (80, {"start": 0, "step": 1, "bound": 80, "kept": True}),
        (27, {"start": 1, "step": 3, "bound": 80}),
        (7, {"start": 6, "step": 1, "bound": 0, "direction": "GE", "operation": "subtract"}),
        (0, {"start": 5, "step": 1, "bound": 5}),
        (None, {"start": 0, "step": 0, "bound": 5}),
        (None, {"start": 0, "step": 1, "bound": 5, "operation": "divide"}),
    ],
)
def test_counters_are_run(turns, form):
    (found,) = collectives(loop(**form))
    assert (found.times, found.exact) == ((1, False) if turns is None else (turns, True))


def test_what_is_no_program_is_named():
    with pytest.raises(ValueError, match="not the text of a compiled program"):
        collectives("module @jit_f { func.func public @main() }")


def test_types_and_constants_of_several_lines():
    text = module(
        [
            '%c = s32[2,2] constant({\n { 1, 2 },\n { 3, 4 } }), metadata={op_name="a(\\"b" x=1}',
            "%t = (pred[3]{0}, /*index=1*/(s4[3], f8e4m3fn[<=2,2]{1,0:T(8)(2,1)}), token[]) f()",
            "ROOT %r = f32[4]{0} negate(f32[4]{0} %p)",
        ]
    )
    main = parse(text).computations["main"]
    assert main.instructions["c"].op_name == 'a(\\"b'
    pred, (four, eight), token = main.instructions["t"].type
    assert [each.bytes for each in (pred, four, eight, token)] == [3, 2, 4, 0]
    assert main.instructions["r"].operands == ("p",) and main.root == "r"
