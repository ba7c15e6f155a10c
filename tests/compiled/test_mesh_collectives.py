"""What a training step on a mesh moves between devices, read from the compiled program.

The sizes tell arrays apart: only activations have an axis of tokens, only adapters one of the rank.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from mesh_runs import decoder, method, own_problem, program
from moved_arrays import KINDS, moved

import lora_jax as lj

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


def moves(problem, mesh):
    return moved(program(problem, mesh).as_text())


def language_model(mesh, name="lora", storage=None, **more):
    adapt = method(name, storage, **({"rank": RANK} if name == "lora" else {}))
    return decoder(adapt, mesh, jnp.float32, SIZES, (8, TOKENS), **more)


def of_weights(found, mesh, *kinds):
    """The arrays that collectives of some kinds give, without those of activations."""
    tokens = {TOKENS, TOKENS - 1, TOKENS // mesh.shape["tensor"]}
    return [each for each in found if each.kind in kinds and not tokens & set(each.dims)]


# No two axes of a mesh have the same size, so how often a gathered array grows names the axis.
@pytest.mark.parametrize(
    "sizes", [(1, 4, 2), pytest.param((4, 2, 1), marks=pytest.mark.slow)], ids=str
)
def test_frozen_dense_weights_are_gathered_over_fsdp_alone(sizes):
    mesh = lj.make_mesh(*sizes)
    found = moves(language_model(mesh), mesh)
    gathered = of_weights(found, mesh, "all-gather")
    head = (WIDTH, WORDS // mesh.shape["tensor"])
    large = [each for each in gathered if math.prod(each.dims) > RANK * INNER]
    assert {each.bare for each in large} == slices(mesh) | {head, head[::-1]}  # and the table
    assert {each.grows for each in large} == {mesh.shape["fsdp"]}
    assert_only_adapters_are_summed(found, mesh)


def test_data_parallel_devices_gather_no_weights():
    mesh = lj.make_mesh(8, 1, 1)
    found = moves(language_model(mesh), mesh)
    assert of_weights(found, mesh, "all-gather") == []
    assert_only_adapters_are_summed(found, mesh)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 2)], ids=str)
def test_quantised_weights_travel_as_they_are_stored(sizes):
    mesh = lj.make_mesh(*sizes)
    found = moves(language_model(mesh, storage=BITS), mesh)
    gathered = of_weights(found, mesh, "all-gather")
    codes = [each for each in gathered if each.dtype == "u8"]
    assert {each.bare for each in codes} == slices(mesh, rows=2)
    assert {each.grows for each in codes} == {mesh.shape["fsdp"]}
    floats = {each.bare for each in gathered if each.dtype != "u8"}
    assert slices(mesh, rows=8) <= floats  # the scales, of blocks of eight
    assert not floats & {each[::turn] for each in (*slices(mesh), *INTO, *OUT) for turn in (1, -1)}
    head = WIDTH * WORDS // mesh.shape["tensor"]
    assert max(math.prod(shape) for shape in floats) == head
    assert_only_adapters_are_summed(found, mesh)


def assert_only_adapters_are_summed(found, mesh):
    """And nothing of weights is moved in any other way."""
    summed = of_weights(found, mesh, "all-reduce", "reduce-scatter")
    assert any(RANK in each.dims for each in summed)
    for each in summed:
        assert RANK in each.dims or math.prod(each.dims) <= WIDTH, each
    others = set(KINDS) - {"all-gather", "all-reduce", "reduce-scatter"}
    for each in of_weights(found, mesh, *others):
        assert math.prod(each.dims) <= RANK * INNER, each


def test_in_full_fine_tuning_gradients_of_matrices_are_summed():
    """So that those above would be seen."""
    mesh = lj.make_mesh(1, 4, 2)
    found = moves(language_model(mesh, "full"), mesh)
    summed = {each.bare for each in of_weights(found, mesh, "all-reduce", "reduce-scatter")}
    for shape in slices(mesh):
        assert {shape, shape[::-1]} & summed, shape


def test_bits_of_a_users_own_function_travel_as_they_are_stored():
    """Without a table: a square matrix is cut by both axes along its outputs."""
    mesh = lj.make_mesh(1, 4, 2)
    storage = {"(up|down|query|output|square)": lj.NF4(block=4)}
    adapt = method("lora", storage, rank=RANK)
    problem = own_problem(adapt, None, inner=512, width=144, tokens=TOKENS, words=192)
    problem = dataclasses.replace(problem, params=jax.tree.map(jnp.float32, problem.params))
    gathered = of_weights(moves(problem, mesh), mesh, "all-gather")
    codes = {each.bare for each in gathered if each.dtype == "u8"}
    assert {(72, 256), (128, 144), (72, 72)} <= codes
    floats = {each.bare for each in gathered if each.dtype != "u8"}
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
