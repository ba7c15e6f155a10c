"""A checkpoint gives back every leaf bit for bit, whatever is donated, sharded or killed."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import checkpoint_writer
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoint_writer import advance, start, truth
from jax.sharding import NamedSharding, PartitionSpec
from same_leaves import assert_same, bits

from lora_jax.training import state_leaves
from lora_jax.training.checkpoint import Checkpoints


class Moments(NamedTuple):
    mean: jax.Array
    empty: dict


def full_state(mesh):
    """Everything that a training state may hold."""
    single = lambda x: jnp.asarray(np.asarray(x, np.float32))  # noqa: E731
    params = {
        "a/b": {
            "A": single(np.arange(12).reshape(3, 4)),
            "B": jnp.asarray(np.ones(2, jnp.bfloat16)),
        },
        "no": {},
    }
    mask = {"a/b": {"A": True, "B": False}, "no": {}}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.masked(optax.adamw(1e-3), mask))
    split, both = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["x"], ["x", "y"]))
    keys = jax.random.split(jax.random.key(1, impl="rbg"), 8)
    return {
        "step": 7,
        "scale": 0.5,
        "params": params,
        "opt": jax.jit(tx.init)(params),
        "moments": Moments(single([np.nan, -0.0, np.inf]), {}),
        "rng": jax.random.key(3),
        "keys": [keys, jax.device_put(keys, split)],
        "sharded": jax.device_put(single(np.arange(64).reshape(8, 8)), both),
        "no_rows": single(np.zeros((0, 3))),
        "no_sharded_rows": jax.device_put(single(np.zeros((0, 8))), split),
        "small": [
            jnp.asarray(np.array([-3, 2], jnp.int4)),
            jnp.asarray(np.array([1, 2], jnp.float8_e4m3fn)),
            jnp.asarray(np.complex64(1j)),
        ],
        "host": [np.array([True, False]), np.arange(3), np.float64(0.1)],
        "none": None,
    }


@pytest.fixture
def mesh():
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path, mesh):
    state = full_state(mesh)
    with Checkpoints(tmp_path / "new" / "run") as saved:
        assert saved.restore(state) is None
        assert saved.save(3, state, {"epoch": (1, 2), "loss": float("inf")})
        got, meta, step = saved.restore(state)
        assert_same(got, state)
        assert (meta, step) == ({"epoch": [1, 2], "loss": "Infinity"}, 3)
    abstract = jax.tree.map(
        lambda x: (
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            if isinstance(x, jax.Array)
            else x
        ),
        state,
    )
    with Checkpoints(tmp_path / "new" / "run") as again:
        assert_same(again.restore(abstract)[0], state, placed=False)


@pytest.mark.parametrize("axes", [(), ("y",), (None, "x"), ("y", "x"), (("x", "y"),)])
def test_leaves_take_the_sharding_of_like(tmp_path, mesh, axes):
    sharded = jax.device_put(
        jnp.arange(64.0).reshape(8, 8), NamedSharding(mesh, PartitionSpec("x", "y"))
    )
    target = NamedSharding(mesh, PartitionSpec(*axes))
    with Checkpoints(tmp_path) as saved:
        saved.save(0, {"w": sharded})
        for like in (
            jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=target),
            jax.device_put(jnp.zeros((8, 8)), target),
        ):
            got = saved.restore({"w": like})[0]["w"]
            assert got.sharding.is_equivalent_to(target, 2) and bits(got) == bits(sharded)
        assert not saved.restore({"w": jnp.zeros((8, 8))})[0]["w"].committed


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    state, steps = start(), 12
    with Checkpoints(tmp_path, keep=steps) as saved:
        for step in range(steps):
            saved.save(step, state)
            before, state = state, advance(state)
            assert before["w"].is_deleted()
        for step in range(steps):
            got = saved.restore(state, step)[0]
            assert got["step"] == step
            np.testing.assert_array_equal(got["w"], truth(step))


def test_only_a_state_that_nobody_else_has_is_saved_without_a_copy():
    """Trials in full would take twice the memory."""
    array = jnp.arange(3.0)
    assert state_leaves.copy(array, owned=True) is array
    assert state_leaves.copy(array) is not array


def test_sigkill_leaves_the_last_committed_step_readable(tmp_path):
    rng, last = random.Random(0), 0
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, checkpoint_writer.__file__, str(tmp_path / "run"), "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True) as parent:
        assert parent.stdout is not None
        for _ in range(2):
            child = int(parent.stdout.readline())
            seen = [int(parent.stdout.readline()) for _ in range(rng.randrange(40, 140))]
            os.kill(child, signal.SIGKILL)
            while "ended" not in parent.stdout.readline():
                pass
            with Checkpoints(tmp_path / "run") as saved:
                state, meta, step = saved.restore(start())
            assert step == meta["step"] == state["step"] >= seen[-1] - 1 > last
            np.testing.assert_array_equal(state["w"], truth(step))
            key = jax.random.key(5)
            for _ in range(step):
                key = jax.random.fold_in(key, 1)
            assert bits(state["key"]) == bits(key)
            last = step


A = {"w": jnp.zeros((4, 8)), "opt": {"mu": jnp.zeros(3), "count": 0}, "rng": jax.random.key(0)}


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (A | {"w": jnp.zeros((8, 8))}, r"leaf w as float32\[4,8\], this state as float32\[8,8\]"),
        (A | {"w": jnp.zeros((4, 8), jnp.int32)}, r"leaf w as float32\[4,8\], this state as int32"),
        (A | {"opt": {"mu": jnp.zeros(3)}}, r"has a leaf opt/count, int64\[\], which .* lacks"),
        (A | {"x": [jnp.zeros(2)]}, r"has no leaf x/0, which this state has as float32\[2\]"),
        (
            A | {"rng": jax.random.key(0, impl="rbg")},
            r"leaf rng as key<fry>\[\], this state as key<r",
        ),
        (
            A | {"rng": jnp.zeros(2, jnp.uint32)},
            r"leaf rng as key<fry>\[\], this state as uint32\[2\]",
        ),
    ],
)
def test_a_mismatch_names_the_first_leaf_and_is_no_damage(tmp_path, like, message):
    with Checkpoints(tmp_path) as saved:
        saved.save(1, A)
        with pytest.raises(ValueError, match=message):
            saved.restore(like)
        assert_same(saved.restore(A)[0], A)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": "text"}, "leaf a is a str"),
        ({"a/b": 1, "a": {"b": 2}}, "two leaves are called a/b"),
        ({}, "without leaves"),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path, state, message):
    with Checkpoints(tmp_path) as saved:
        with pytest.raises(ValueError, match=message):
            saved.save(1, state)
        assert saved.steps() == []


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, keep):
    """Whether the same process goes on or, after every other step, another."""
    saved = Checkpoints(tmp_path, keep=keep)
    for step in range(5):
        saved.save(step, {"w": jnp.asarray(np.full(3, step, np.int32))})
        if step % 2:
            saved.close()
            saved = Checkpoints(tmp_path, keep=keep)
    zeros = jnp.asarray(np.zeros(3, np.int32))
    saved.wait()
    assert saved.steps() == [0, 1, 2, 3, 4][-keep:]
    assert not saved.save(4, {"w": zeros})
    assert saved.restore({"w": zeros})[0]["w"].tolist() == [4] * 3
    with pytest.raises(ValueError, match="has no checkpoint of step 77, only of"):
        saved.restore({"w": zeros}, step=77)
    saved.close()


def test_a_save_that_fails_is_reported_and_leaves_the_last_one(tmp_path):
    folder, aside = tmp_path / "run", tmp_path / "aside"
    saved = Checkpoints(folder)
    saved.save(1, A)
    saved.wait()
    folder.rename(aside)
    folder.write_text("in the way")
    saved.save(2, A)
    with pytest.raises(OSError, match="Not a directory"):
        saved.wait()
    saved.close()
    folder.unlink()
    aside.rename(folder)
    with Checkpoints(folder) as again:
        assert again.steps() == [1]
        assert again.restore(A)[2] == 1


def test_to_keep_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1"):
        Checkpoints(tmp_path, keep=0)
