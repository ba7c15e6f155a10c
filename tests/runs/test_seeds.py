"""Another seed changes all that it draws, and the same seed nothing, alone and in a group."""

import itertools

import jax
import numpy as np
import pytest

from experiments.runs.group import Group, trial_runs
from experiments.setup.experiment import build
from experiments.setup.load import load
from lora_jax.training.outcome import Outcome

pytestmark = pytest.mark.usefixtures("standard_promotion")
TRIALS = ((3, 0), (5, 0), (3, 0), (3, 1))
"""Seeds, and draws of the examples."""
DROPPED = {"variant__dropout": 0.3}, {"model__dropout": True, "model__head_dropout": 0.5}


def seen(trial, state, batches):
    """All that a trial draws, as bytes."""
    adapters = state.trainable["adapters"], trial.frozen.constants, trial.frozen.shared
    data = trial.texts.encoded["train"]
    epochs = itertools.islice(trial.plan().start(), 2 * trial.plan().steps_per_epoch)
    found = {
        "adapters": adapters,
        "head": state.trainable["params"],
        "dropout": jax.random.key_data(state.rng),
        "order": [np.sort(each.indices) for each in epochs],
        "examples": [data.ids, data.labels],
        "batches": list(itertools.islice(batches, 2)),
    }
    return {
        name: b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(each))
        for name, each in found.items()
    }


@pytest.mark.parametrize("variant", ["lora", "vera", "eva", "lora_ga"])
def test_a_seed_changes_all_that_is_drawn(config_of, variant, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    few = {"data__train": 20, "train__batch_size": 4, "train__init_batches": 2}
    few |= {"targets": ("query/kernel",), "variant__rank": 2}
    from_data = variant in ("eva", "lora_ga")
    few |= {} if from_data else {"model__pool": "cls"}  # whose head no checkpoint has
    configs = [config_of(variant=variant, seed=s, data__draw=d, **few) for s, d in TRIALS]
    loaded = load(configs[0]), load(configs[-1])
    trials = [build(each, loaded[each.data.draw]) for each in configs]
    alone = [seen(t, t.start(), t.batches(0)) for t in trials]
    first, other, same, drawn = alone
    assert first == same
    differ = {"adapters", "dropout", "order", "batches"} | (set() if from_data else {"head"})
    assert {name for name in first if first[name] != other[name]} == differ
    assert {"examples", "batches"} <= {name for name in first if first[name] != drawn[name]}
    assert all(first[name] == drawn[name] for name in ("head", "dropout", "order"))
    if from_data:  # such trials are programs of their own
        name = "mean" if variant == "eva" else "values"  # no directions, which have random signs
        seen_by, another, again = (
            [getattr(each, name) for each in trial.gathered.seen.values()] for trial in trials[:3]
        )
        assert all(map(np.array_equal, seen_by, again))
        assert min(map(apart, seen_by, another)) > 1e-3  # not by rounding alone
        return
    group = Group.of(trials)
    fed = trial_runs(trials, [None] * len(trials), [Outcome() for _ in trials])
    for n, state in enumerate(group.start()):
        own = group.own(n, state)
        assert seen(trials[n], own, fed[n].batches(0)) == alone[n]
        constants = group.frozen[n].constants, group.frozen[n].shared
        assert same_leaves(constants, (trials[n].frozen.constants, trials[n].frozen.shared))


@pytest.mark.parametrize("settings", DROPPED, ids=["adapters", "model"])
def test_dropout_is_drawn_anew_by_key_and_never_in_evaluation(config_of, settings):
    """That of adapters, and that of the model."""
    trial = build(config_of(data__train=16, targets=("query/kernel",), **settings))
    moved = jax.tree.map(lambda x: x + 0.1, trial.trainable)
    batch = next(trial.batches(0))
    keys = jax.random.split(trial.rng)
    call = jax.jit(lambda key: trial.predict(moved, trial.frozen, batch, key))
    first, second, again = call(keys[0]), call(keys[1]), call(keys[0])
    plain = trial.predict(moved, trial.frozen, batch, None)
    assert (first == again).all()
    for one, other in itertools.combinations((first, second, plain), 2):
        assert (one != other).any(axis=1).all()


def apart(one, other):
    """How far two arrays are from each other, in parts of the larger one."""
    return np.abs(one - other).max() / max(np.abs(one).max(), np.abs(other).max(), 1e-30)


def same_leaves(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)
