"""A damaged checkpoint is noticed, and the one before it or the next best takes its place."""

import errno
import json
import random
import shutil

import jax
import jax.numpy as jnp
import pytest
from same_leaves import assert_same

from lora_jax.files.json_text import config_digest
from lora_jax.training.checkpoint import Checkpoints


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


@pytest.mark.parametrize("item", ["meta", "state"])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ESTALE, "a text"),
        MemoryError(),
        ValueError("RESOURCE_EXHAUSTED: 8"),
        ValueError("PERMISSION_DENIED: Error opening 'd': Permission denied [source locations]"),
    ],
)
def test_what_cannot_be_read_now_is_not_damaged(two_steps, tmp_path, monkeypatch, item, error):
    """A good step is not deleted because of the machine, nor passed over for an older one."""
    source, states = two_steps
    folder, load = shutil.copytree(source, tmp_path / "run"), Checkpoints._load

    def fail(self, handler, step, of, args):
        if (step, of) == (2, item):
            raise RuntimeError("orbax") from error
        return load(self, handler, step, of, args)

    with Checkpoints(folder) as saved:
        with monkeypatch.context() as patched:
            patched.setattr(Checkpoints, "_load", fail)
            with pytest.raises(OSError, match=r"checkpoint .*/2 cannot be read now: "):
                saved.restore(states[0])
        assert saved.steps() == [1, 2] and saved.restore(states[0])[2] == 2


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
    elif name == "another":
        shutil.rmtree(step)
        shutil.copytree(step.with_name("1"), step)
    else:
        shutil.rmtree(step / name)


DAMAGES = ["numbers", "values", "truncated", "empty", "another", "meta", "state"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_step_gives_way_and_can_be_saved_again(two_steps, tmp_path, how):
    source, states = two_steps
    folder = shutil.copytree(source, tmp_path / "run")
    damage(folder / "2", how)
    with Checkpoints(folder) as saved:
        with pytest.raises(ValueError, match="run/2 is damaged"):
            saved.restore(states[1], step=2)
        assert saved.steps() == [1, 2]
        with pytest.warns(UserWarning, match=r"run/2 is damaged.*") as caught:
            assert saved.restore(states[1])[2] == 1
        assert how != "numbers" or "leaf w differs from what was saved" in str(caught[0].message)
        assert saved.save(2, states[1], {"n": 0})
        got, _, step = saved.restore(states[1])
        assert step == 2
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
