"""Trials that share a program take the steps that each takes alone, to rounding."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_trials import (
    TRIALS,
    Trial,
    adam,
    assert_close,
    batches,
    build,
    built,
    hyper_of,
    make,
    predict_with,
    sgd,
)

from lora_jax.training import optim, optimizers
from lora_jax.training.fastest_program import fastest
from lora_jax.training.masking import narrow, share, widen
from lora_jax.training.step import TrainState, cross_entropy, make_train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")

EXECUTIONS = ("each", "map", "vmap")

PAIR = (
    Trial(learning_rate=0.2, warmup=3, clip=0.05),
    Trial(weight_decay=0.1, seed=4, settings={"rank": 3, "alpha": 8.0}),
)


def alone(trial, steps, names="lora", optimizer=sgd):
    """The states after each step of a trial by itself, and the metrics."""
    made = make(trial, names)
    tx = optimizer(hyper_of(trial))
    predict = predict_with(made.adapted)
    step = make_train_step(made.adapted, tx, predict, cross_entropy, clip=trial.clip)
    own = jax.tree.map(jnp.copy, made.trainable)
    rng = jax.random.key(trial.seed + 100)
    state = TrainState.create(made.adapted, tx, own, made.frozen, rng)
    found = []
    source = batches(trial)
    for _ in range(steps):
        state, values = step(state, made.frozen, next(source))
        found.append((jax.tree.map(np.array, state.trainable), dict(values)))
    return found


def test_adapters_in_a_wider_program_are_those_of_max_rank():
    """Those that `init` makes of the same rank where there is room for more."""
    rest = {"dropout": 0.1, "learning_rate_ratio": 4.0}
    small, large, wanted = (
        make(Trial(settings={"rank": rank, "max_rank": most, **rest}))
        for rank, most in ((2, None), (3, 3), (2, 3))
    )
    like = large.trainable, large.frozen
    trainable, frozen = widen(small.trainable, small.frozen, like)
    chex.assert_trees_all_equal(trainable, wanted.trainable)
    chex.assert_trees_all_equal(frozen.constants, wanted.frozen.constants)


def together(all_trials, steps, execution, names, optimizer=sgd):
    run, states, made = build(all_trials, execution, names, optimizer)
    population = run.start(states)
    sources = [batches(trial) for trial in all_trials]
    found = [[] for _ in all_trials]
    for _ in range(steps):
        population, values = run.step(population, [next(source) for source in sources])
        for number, mine in enumerate(found):
            wide = jax.tree.map(np.array, run.pick(population, number).trainable)
            own = narrow(wide, made[number].trainable)
            mine.append((own, run.read(values)[number]))
    return found


def assert_as_alone(chosen, steps, names, executions=("vmap",), optimizer=sgd):
    """Step by step, against each trial by itself."""
    wanted = [alone(trial, steps, names, optimizer) for trial in chosen]
    for execution in executions:
        found = together(chosen, steps, execution, names, optimizer)
        for ours, theirs in zip(found, wanted, strict=True):
            for (trainable, values), (expected, others) in zip(ours, theirs, strict=True):
                assert_close(trainable, expected, rtol=1e-10, atol=1e-12)
                np.testing.assert_allclose(values["loss"], others["loss"], rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_trajectories_of_sgd_in_float64():
    """Learning rates, decay, warm-up, clipping, alpha, rank, dropout, ratio and seed differ."""
    assert_as_alone(TRIALS, 6, "lora", EXECUTIONS)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "names", ["dora,lora_fa", "pissa,hira", "riemannian,lora_pro", "vera", "vblora", "full"]
)
def test_trajectories_of_other_methods(names):
    """Masks, constants and shared arrays of theirs, in stacks and single matrices."""
    chosen = PAIR
    if names in ("vera", "vblora", "full"):  # of one rank, or none
        chosen = [dataclasses.replace(trial, settings={}) for trial in PAIR]
    assert_as_alone(chosen, 6, names)


def by_name(name):
    """An optimiser of `optimizers.KINDS` whose rate, decay, warm-up and b1 are traced."""

    def make(hyper):
        given = hyper["learning_rate"], 10, hyper["warmup"]
        rate = optim.traceable_schedule("constant", *given)
        numbers = {"b1": 0.9, "b2": 0.99, "eps": 1e-8, "momentum": 0.8}
        numbers["weight_decay"] = hyper["weight_decay"]
        kind = optimizers.KINDS[name]
        return kind.make(rate, {n: numbers[n] for n in ("weight_decay", *kind.reads)})

    return make


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["schedule_free", "lion", "adafactor", "muon"])
def test_trajectories_of_other_optimizers(name):
    """Rates, decay, warm-up and learning-rate ratios differ, and ranks where padding is nothing."""
    ranked = PAIR if optimizers.KINDS[name].elementwise else (PAIR[0], Trial(seed=4))
    ratios = ({"learning_rate_ratio": 2.0}, {"learning_rate_ratio": 3.0})
    chosen = [
        dataclasses.replace(trial, settings={**trial.settings, **more})
        for trial, more in zip(ranked, ratios, strict=True)
    ]
    assert_as_alone(chosen, 4, "lora", optimizer=by_name(name))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_adalora_with_budgets_and_penalties_of_their_own():
    settings = {"rank": 3, "target_rank": 2, "total_steps": 12, "t_init": 2, "t_final": 4}
    other = {"target_rank": 1, "orthogonality": 0.5, "beta1": 0.5, "t_init": 1, "alpha": 4.0}
    assert_as_alone(
        (Trial(settings=settings), Trial(seed=2, settings=settings | other)), 10, "adalora"
    )


@pytest.fixture(scope="module")
def first_values():
    """The metrics of the first step, with Adam and in float32, of some trials alone."""
    with jax.numpy_dtype_promotion("standard"):
        return {number: alone(TRIALS[number], 1, optimizer=adam)[0][1] for number in (1, 2)}


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_nothing_is_compiled_anew_for_other_numbers(execution, compilations, first_values):
    """The same program takes any learning rate, alpha, rank, ratio and seed."""
    run, states, _ = built(execution)
    sources = [batches(trial) for trial in TRIALS]
    population = run.start(jax.tree.map(jnp.copy, states))
    population, values = run.step(population, [next(source) for source in sources])
    for number, expected in first_values.items():
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(run.read(values)[number][name], expected[name], rtol=1e-5)
    population, _ = run.step(population, [next(source) for source in sources])
    with compilations() as counted:
        for _ in range(3):
            population, _ = run.step(population, [next(source) for source in sources])
    assert counted == []


def test_the_base_is_neither_stacked_nor_copied():
    run, states, made = built("vmap")
    population = run.start(states)
    assert jax.tree.leaves(population.trainable["adapters"])[0].shape[0] == len(TRIALS)
    before = [id(leaf) for leaf in made[0].frozen.base.values()]
    shared = share(made[1].frozen, made[0].frozen)
    assert [id(leaf) for leaf in shared.base.values()] == before
    path, leaf = next(iter(made[1].frozen.base.items()))  # but for one that differs in a number
    moved = {**made[1].frozen.base, path: leaf.at[(0,) * leaf.ndim].add(1)}
    shared = share(dataclasses.replace(made[1].frozen, base=moved), made[0].frozen)
    assert [id(leaf) for leaf in shared.base.values()] == [id(moved[path]), *before[1:]]


@pytest.mark.parametrize(("room", "tried"), [(0, ["each"]), (10**9, ["each", "vmap"])])
def test_a_step_of_all_that_memory_has_no_room_for_is_not_tried(room, tried):
    def start():
        return [jax.tree.map(jnp.copy, state) for state in built("each")[1]]

    given = [next(batches(trial)) for trial in TRIALS]
    _, seconds = fastest(
        lambda each: built(each)[0], start, given, steps=10**9, shapes=1, room=room
    )
    assert list(seconds)[:2] == tried
