"""A damaged checkpoint is noticed, and the one before it or the next best takes its place."""

import errno
import json
import random
import shutil

import jax
import jax.numpy as jnp
import pytest
from same_leaves import assert_same
from small_training import fit

from lora_jax.files.canonical_json import config_digest
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.saved_trials import OneTrial


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
    with Checkpoints(folder, best=("n", "max")) as saved:
        saved.best_step()  # a score that must be forgotten together with its step
        with pytest.raises(ValueError, match="run/2 is damaged"):
            saved.restore(states[1], step=2)
        assert saved.steps() == [1, 2]
        with pytest.warns(UserWarning, match=r"run/2 is damaged.*") as caught:
            assert saved.restore(states[1])[2] == 1
        assert how != "numbers" or "leaf w differs from what was saved" in str(caught[0].message)
        assert saved.save(2, states[1], {"n": 0})
        got, _, step = saved.restore(states[1])
        assert (step, saved.best_step()) == (2, 1)
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


@pytest.mark.usefixtures("standard_promotion")
def test_a_run_whose_best_checkpoint_is_damaged_names_the_next_best(tmp_path):
    scores = iter((0.2, 0.9, 0.1, 0.4, 0.6))
    state, outcome = fit(tmp_path, evaluate_every=4, scores=lambda _: next(scores))
    assert (outcome.best_step, outcome.metrics_best) == (8, {"accuracy": 0.9})
    damage(tmp_path / "checkpoints" / "8", "numbers")
    with (
        Checkpoints(tmp_path / "checkpoints", best=("accuracy", "max")) as saved,
        pytest.warns(UserWarning, match="8 is damaged"),
    ):
        (got,), (note,) = OneTrial(saved, {}).best([state], [outcome])
    assert (int(got.step), outcome.best_step, outcome.metrics_best) == (20, 20, {"accuracy": 0.6})
    assert note.endswith("of step 8, is damaged: of step 20 instead")


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
