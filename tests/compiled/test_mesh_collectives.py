"""What a training step on a mesh moves between devices, read from the compiled program.

The sizes tell arrays apart: only activations have an axis of tokens, only adapters one of the rank.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mesh_runs import decoder, method, own_problem, program

import lora_jax as lj
from lora_jax.compiled.collectives import collectives

LAYERS, WIDTH, INNER, HEADS, KEYS, WORDS, RANK, TOKENS = 5, 64, 160, 80, 40, 96, 3, 28
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 10,
    "num_hidden_layers": LAYERS,
}
INTO = ((WIDTH, HEADS), (WIDTH, KEYS), (WIDTH, INNER))
OUT = ((HEADS, WIDTH), (INNER, WIDTH))
BITS = {"layers/.*kernel": lj.NF4(block=8)}


def slices(mesh, rows=1):
    """Of each layer's matrices, what one device multiplies by: cut by `tensor` alone."""
    t = mesh.shape["tensor"]
    into = {(inputs // rows, outputs // t) for inputs, outputs in INTO}
    return into | {(inputs // t // rows, outputs) for inputs, outputs in OUT}


def moved(problem, mesh):
    return collectives(program(problem, mesh).as_text())


def language_model(mesh, name="lora", storage=None, **more):
    adapt = method(name, storage, **({"rank": RANK} if name == "lora" else {}))
    return decoder(adapt, mesh, jnp.float32, SIZES, (8, TOKENS), **more)


def of_tokens(shape, mesh):
    """Whether an array is of activations."""
    t = mesh.shape["tensor"]
    return bool({TOKENS, TOKENS - 1, TOKENS // t} & set(shape.dims))


def of_weights(found, mesh, *kinds):
    """The shapes that collectives of some kinds have the larger side of, and their groups."""
    for each in found:
        if each.kind in kinds:
            for shape in each.results if each.kind == "all-gather" else each.operands:
                if not of_tokens(shape, mesh):
                    yield shape, {frozenset(group) for group in each.groups}


def along(mesh, *names):
    """The groups of devices that differ along some axes of the mesh alone."""
    places = np.arange(mesh.size).reshape(mesh.devices.shape)
    axes = [mesh.axis_names.index(name) for name in names]
    rows = np.moveaxis(places, axes, range(-len(axes), 0))
    return {
        frozenset(row) for row in rows.reshape(-1, math.prod(rows.shape[-len(axes) :])).tolist()
    }


def bare(shape):
    """Without axes of one: of one layer of a stack."""
    return tuple(size for size in shape.dims if size != 1)


def test_frozen_dense_weights_are_gathered_over_fsdp_alone():
    mesh = lj.make_mesh(2, 2, 2)
    found = moved(language_model(mesh), mesh)
    gathered = list(of_weights(found, mesh, "all-gather"))
    head = (WIDTH, WORDS // mesh.shape["tensor"])
    large = {bare(s) for s, _ in gathered if math.prod(s.dims) > RANK * INNER}
    assert large == slices(mesh) | {head, head[::-1]}  # and the table
    for shape, groups in gathered:
        if bare(shape) in large:
            assert groups == along(mesh, "fsdp"), shape
    assert_only_adapters_are_summed(found, mesh)


@pytest.mark.parametrize(
    "sizes", [(2, 2, 2), pytest.param((1, 4, 2), marks=pytest.mark.slow)], ids=str
)
def test_quantised_weights_travel_as_they_are_stored(sizes):
    mesh = lj.make_mesh(*sizes)
    found = moved(language_model(mesh, storage=BITS), mesh)
    gathered = list(of_weights(found, mesh, "all-gather"))
    codes = {bare(shape) for shape, _ in gathered if shape.dtype == "u8"}
    assert codes == slices(mesh, rows=2)
    assert all(groups == along(mesh, "fsdp") for shape, groups in gathered if shape.dtype == "u8")
    floats = {bare(shape) for shape, _ in gathered if shape.dtype != "u8"}
    assert slices(mesh, rows=8) <= floats  # the scales, of blocks of eight
    assert not floats & {each[::turn] for each in (*slices(mesh), *INTO, *OUT) for turn in (1, -1)}
    head = WIDTH * WORDS // mesh.shape["tensor"]
    assert max(math.prod(shape) for shape in floats) == head
    assert_only_adapters_are_summed(found, mesh)


def assert_only_adapters_are_summed(found, mesh):
    """And nothing of weights is moved in any other way."""
    summed = list(of_weights(found, mesh, "all-reduce", "reduce-scatter"))
    assert any(RANK in shape.dims for shape, _ in summed)
    for shape, _ in summed:
        assert RANK in shape.dims or math.prod(shape.dims) <= WIDTH, shape
    others = "all-to-all", "ragged-all-to-all", "collective-permute", "collective-broadcast"
    for shape, _ in of_weights(found, mesh, *others):
        assert math.prod(shape.dims) <= RANK * INNER, shape


def test_in_full_fine_tuning_gradients_of_matrices_are_summed():
    """So that those above would be seen."""
    mesh = lj.make_mesh(1, 4, 2)
    found = moved(language_model(mesh, "full"), mesh)
    summed = {bare(shape) for shape, _ in of_weights(found, mesh, "all-reduce", "reduce-scatter")}
    for shape in slices(mesh):
        assert {shape, shape[::-1]} & summed, shape


def test_bits_of_a_users_own_function_travel_as_they_are_stored():
    """Without a table: a square matrix is cut by both axes along its outputs."""
    mesh = lj.make_mesh(1, 4, 2)
    storage = {"(up|down|query|output|square)": lj.NF4(block=4)}
    adapt = method("lora", storage, rank=RANK)
    problem = own_problem(adapt, None, inner=512, width=144, tokens=TOKENS, words=192)
    problem = dataclasses.replace(problem, params=jax.tree.map(jnp.float32, problem.params))
    found = moved(problem, mesh)
    gathered = list(of_weights(found, mesh, "all-gather"))
    codes = {bare(shape) for shape, _ in gathered if shape.dtype == "u8"}
    assert {(72, 256), (128, 144), (72, 72)} <= codes
    floats = {bare(shape) for shape, _ in gathered if shape.dtype != "u8"}
    others = {shape for shape in floats if not {192, 96, 48} & set(shape)}  # not of the table
    assert max(map(math.prod, others)) < 144 * 72


# ---- the residual --------------------------------------------------------------------------------


@pytest.mark.slow
def test_between_blocks_tokens_are_cut_which_takes_less_memory():
    """Recomputed layers keep their inputs only, and of those a part of the tokens."""
    mesh, tokens = lj.make_mesh(1, 2, 4), 256
    sizes = {**SIZES, "max_position_embeddings": tokens}
    programs, temporaries = [], []
    for cut in (mesh, None):
        adapt = method("lora", rank=RANK)
        problem = decoder(adapt, cut, jnp.float32, sizes, (4, tokens), remat=True)
        loss = lambda outputs, batch: outputs.mean(axis=(1, 2))  # noqa: E731
        compiled = program(dataclasses.replace(problem, loss=loss), mesh)
        programs.append(compiled.as_text())
        temporaries.append(compiled.memory_analysis().temp_size_in_bytes)
    kept, whole = (f"f32[{LAYERS},2,{each},{WIDTH}]" for each in (tokens // 4, tokens))
    assert kept in programs[0] and whole not in programs[0]
    assert kept not in programs[1]
    assert temporaries[0] < temporaries[1]
