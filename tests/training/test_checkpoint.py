"""Checkpoints: exact through donation, shardings, kills and flipped bits; errors name the leaf."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors
from jax.sharding import NamedSharding, PartitionSpec

from lora_jax.files.canonical_json import config_digest
from lora_jax.files.tree_file import load_tree, save_tree
from lora_jax.training.checkpoint import Checkpoints

# The state of the kill and donation tests is a linear congruential generator: exact, and known for
# any step without JAX.


def start():
    w = jnp.arange(1 << 18, dtype=jnp.uint32)
    return {"step": jnp.uint32(0), "w": w, "key": jax.random.key(5)}


@partial(jax.jit, donate_argnums=0)
def advance(s):
    w = s["w"] * jnp.uint32(1664525) + jnp.uint32(1013904223)
    return {"step": s["step"] + jnp.uint32(1), "w": w, "key": jax.random.fold_in(s["key"], 1)}


def truth(step):
    w = np.arange(1 << 18, dtype=np.uint32)
    for _ in range(step):
        w = w * np.uint32(1664525) + np.uint32(1013904223)
    return w


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


def bits(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(got, want, placed=True):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        assert type(a) is type(b) and bits(a) == bits(b), path
        if hasattr(b, "dtype"):
            assert a.dtype == b.dtype and a.shape == b.shape, path
        if placed and isinstance(b, jax.Array):
            assert a.sharding == b.sharding and a.committed == b.committed, path


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


def train_until_killed(folder):
    """Reports every step, after the number of its process."""
    print(os.getpid(), flush=True)
    with Checkpoints(folder) as saved:
        state, _, step = saved.restore(start()) or (start(), {}, 0)
        while True:
            state, step = advance(state), step + 1
            saved.save(step, state, {"step": step})
            for _ in range(20):  # lines that come while the save is under way
                print(step, flush=True)


if __name__ == "__main__":
    # Forked, as imports take seconds; so nothing above may compute with JAX.
    for _ in range(int(sys.argv[2])):
        if child := os.fork():
            os.waitpid(child, 0)
            print("ended", flush=True)
        else:
            train_until_killed(sys.argv[1])
    sys.exit()


def test_sigkill_leaves_the_last_committed_step_readable(tmp_path):
    rng, last = random.Random(0), 0
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, str(tmp_path / "run"), "2"]
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


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "run"
    noise = jax.random.normal(jax.random.key(0), (2, 64, 64))
    states = [{"w": noise[i - 1], "b": jnp.arange(3) * i, "n": i} for i in (1, 2)]
    with Checkpoints(folder) as saved:
        for state in states:
            saved.save(state["n"], state, {"n": state["n"]})
    return folder, states


def files(step):
    """The files that hold the arrays, their index and our digests, the largest first."""
    found = [p for p in step.rglob("*") if p.is_file() and p.parent.name in ("d", "meta", "state")]
    return sorted(found, key=lambda p: -p.stat().st_size)


@pytest.mark.filterwarnings("ignore:checkpoint .* is damaged")
def test_a_flipped_bit_never_changes_what_is_restored(two_steps, tmp_path):
    source, states = two_steps
    rng, found = random.Random(0), 0
    for case in range(20):
        folder = shutil.copytree(source, tmp_path / str(case))
        # Half of the cases in the file that holds the numbers, half anywhere.
        file = files(folder / "2")[0] if case % 2 else rng.choice(files(folder / "2"))
        data = bytearray(file.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        with Checkpoints(folder) as saved:
            got, meta, step = saved.restore(states[0])
            assert_same(got, states[step - 1])
            assert meta == {"n": step}
            assert saved.steps() == ([1] if step == 1 else [1, 2])
        found += step == 1
    assert found >= 10


def damage(step, name):
    if name == "numbers":
        data = bytearray(files(step)[0].read_bytes())
        data[len(data) // 2] ^= 1
        files(step)[0].write_bytes(data)
    elif name == "values":
        file = step / "meta" / "metadata"
        file.write_bytes(
            file.read_bytes().replace(b'"n":2', b'"n":3').replace(b'"n": 2', b'"n": 3')
        )
    elif name == "truncated":
        files(step)[0].write_bytes(files(step)[0].read_bytes()[:100])
    elif name == "empty":
        shutil.rmtree(step)
        step.mkdir()
    else:
        shutil.rmtree(step / name)


@pytest.mark.parametrize("how", ["numbers", "values", "truncated", "empty", "meta", "state"])
def test_a_damaged_step_gives_way_and_can_be_saved_again(two_steps, tmp_path, how):
    source, states = two_steps
    folder = shutil.copytree(source, tmp_path / "run")
    damage(folder / "2", how)
    with Checkpoints(folder, best=("n", "max")) as saved:
        with pytest.raises(ValueError, match="run/2 is damaged"):
            saved.restore(states[1], step=2)
        assert saved.steps() == [1, 2]
        with pytest.warns(UserWarning, match=r"run/2 is damaged.*") as caught:
            assert saved.restore(states[1])[2] == 1
        assert how != "numbers" or "leaf w differs from what was saved" in str(caught[0].message)
        assert saved.save(2, states[1], {"n": 2})
        got, _, step = saved.restore(states[1])
        assert step == saved.best_step() == 2
        assert_same(got, states[1])


def test_nothing_is_deleted_if_no_step_is_good(two_steps, tmp_path):
    source, states = two_steps
    folder = shutil.copytree(source, tmp_path / "run")
    for step in "12":
        damage(folder / step, "state")
    with (
        Checkpoints(folder) as saved,
        pytest.warns(UserWarning, match="run/2"),
        pytest.raises(ValueError, match=r"run/1 is damaged.* delete .*run to start over"),
    ):
        saved.restore(states[0])
    with Checkpoints(folder) as saved:
        assert saved.steps() == [1, 2]


def test_digests_of_an_earlier_version_get_one_line_and_are_no_damage(two_steps, tmp_path):
    source, states = two_steps
    folder = shutil.copytree(source, tmp_path / "run")
    for step in "12":
        file = folder / step / "meta" / "metadata"
        body = json.loads(file.read_bytes())["body"]
        body["leaves"] = {name: [kind, "0" * 64] for name, (kind, _) in body["leaves"].items()}
        whole = {"body": body, "sha256": config_digest(body)}
        file.write_text(json.dumps(whole), encoding="utf-8")
    with (
        Checkpoints(folder) as saved,
        pytest.raises(ValueError, match=r"run/2 has digests .*, of an earlier version: .* over$"),
    ):
        saved.restore(states[0])
    with Checkpoints(folder) as saved:
        assert saved.steps() == [1, 2]


def three_scores(folder, *scores):
    with Checkpoints(folder, keep=3, best=("m", "max")) as saved:
        for step, score in enumerate(scores, 1):
            saved.save(step, {"w": jnp.full(9, step)}, {"m": score})


@pytest.mark.parametrize(("scores", "then"), [((5, 9, 7), 3), ((7, 9, 5), 1), ((7, 9, 7), 1)])
def test_a_damaged_best_step_gives_way_to_the_next_best(tmp_path, scores, then):
    three_scores(tmp_path, *scores)
    like = {"w": jnp.zeros(9, jnp.int32)}
    with Checkpoints(tmp_path, keep=3, best=("m", "max")) as saved:
        got, meta, step = saved.restore_best(like)
        assert (got["w"][0], meta, step) == (2, {"m": 9}, 2)
    damage(tmp_path / "2", "numbers")
    with Checkpoints(tmp_path, keep=3, best=("m", "max")) as saved:
        with pytest.warns(UserWarning, match=r"2 is damaged: .*; using the next best"):
            got, meta, step = saved.restore_best(like)
        assert (got["w"][0], meta, step) == (then, {"m": 7}, then)
        assert saved.steps() == [1, 3]


def test_no_step_with_a_score_and_no_good_one(tmp_path):
    like = {"w": jnp.zeros(9, jnp.int32)}
    three_scores(tmp_path / "none", None, None, None)
    with Checkpoints(tmp_path / "none", best=("m", "max")) as saved:
        assert saved.restore_best(like) is None
    three_scores(tmp_path / "bad", None, 1, None)
    damage(tmp_path / "bad" / "2", "numbers")
    with (
        Checkpoints(tmp_path / "bad", best=("m", "max")) as saved,
        pytest.raises(ValueError, match=r"2 is damaged: .*; delete .*bad to start over"),
    ):
        saved.restore_best(like)


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


@pytest.mark.parametrize(
    ("options", "scores", "kept", "best"),
    [
        ({"keep": 2}, [1, 2, 3], [1, 2], None),
        ({"keep": 2, "best": ("m", "max")}, [1, 9, 3, None, 4], [1, 3, 4], 1),
        ({"keep": 1, "best": ("m", "min")}, [1, 9, 0, float("nan"), 4], [2, 4], 2),
        ({"keep": 1, "best": ("m", "max")}, [5, 5, 1], [0, 2], 0),
        ({"keep": 1, "best": ("m", "max")}, [None, None], [1], None),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, options, scores, kept, best):
    """Whether the same process goes on or, after every other step, another."""
    saved = Checkpoints(tmp_path, **options)
    for step, score in enumerate(scores):
        saved.save(
            step,
            {"w": jnp.asarray(np.full(3, step, np.int32))},
            {} if score is None else {"m": score},
        )
        if step % 2:
            saved.close()
            saved = Checkpoints(tmp_path, **options)
    zeros = jnp.asarray(np.zeros(3, np.int32))
    assert saved.best_step() == best
    assert saved.steps() == kept
    assert not saved.save(kept[-1], {"w": zeros})
    assert saved.restore({"w": zeros})[0]["w"].tolist() == [kept[-1]] * 3
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


@pytest.mark.parametrize("options", [{"keep": 0}, {"best": ("m", "most")}])
def test_wrong_options_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=r"keep must be at least 1|expected \(metric, 'max'\)"):
        Checkpoints(tmp_path, **options)


B = jnp.ones((3, 2), jnp.bfloat16)
TREE = {
    "adapters": {
        "encoder/query/kernel": {"A": jnp.arange(6.0).reshape(2, 3), "B": B},
        "encoder/bias": {},
    },
    "params": {"classifier/bias": jnp.float32(3), "t": jnp.arange(6).reshape(2, 3).T},
}


def test_a_tree_is_one_safetensors_file_that_others_can_read(tmp_path):
    path = save_tree(tmp_path / "out", TREE, {"rank": 2})
    assert path == tmp_path / "out" / "adapter.safetensors"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with safetensors.safe_open(path, framework="np") as file:
        names = {
            "adapters/encoder/query/kernel/A",
            "adapters/encoder/query/kernel/B",
            "params/classifier/bias",
            "params/t",
        }
        assert set(file.keys()) == names
        np.testing.assert_array_equal(file.get_tensor("params/t"), np.arange(6).reshape(2, 3).T)
    for where in (path, path.parent):
        tree, meta = load_tree(where)
        assert_same(tree, TREE)
        assert meta == {"rank": 2}
    save_tree(path, {"params": {}}, {})
    assert load_tree(path) == ({"params": {}}, {})


def test_a_changed_bit_or_a_missing_byte_of_the_file_is_found(tmp_path):
    path = save_tree(tmp_path / "a.safetensors", TREE, {"rank": 2})
    good, rng = path.read_bytes(), random.Random(0)
    for case in range(60):
        data = bytearray(good)
        if case % 3:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"a\.safetensors ({DAMAGED})"):
            load_tree(path)


DAMAGED = r"is damaged|was not written by|\(.* bytes\) is corrupt or truncated"


def test_trees_that_cannot_be_named_are_refused(tmp_path):
    for tree in ({"a": "x"}, {"a": [jnp.ones(2)]}, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}):
        with pytest.raises(ValueError, match="cannot be saved"):
            save_tree(tmp_path, tree)
    with pytest.raises(FileNotFoundError, match=r"there is no adapter .*adapter\.safetensors"):
        load_tree(tmp_path)


def test_equal_trees_give_equal_files(tmp_path):
    files = {save_tree(tmp_path / str(i), TREE, {"rank": 2}).read_bytes() for i in range(20)}
    assert len(files) == 1
