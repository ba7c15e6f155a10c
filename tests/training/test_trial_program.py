"""Trials of one program against the same trials run alone, to rounding and in float64 to 1e-10."""

import dataclasses
import functools
import math
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lora_jax as lj
import variants
from lora_jax.records import metrics_log
from lora_jax.training import checkpoint, loop, optim, optimizers, trial_program
from lora_jax.training.fastest_program import fastest
from lora_jax.training.loop_settings import Loop
from lora_jax.training.masking import narrow, share, union, widen
from lora_jax.training.outcome import Outcome
from lora_jax.training.saved_trials import ManyTrials
from lora_jax.training.step import TrainState, cross_entropy, make_step, make_train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")

EXECUTIONS = ("each", "map", "vmap")


@dataclasses.dataclass
class Trial:
    """What may differ between the trials of a program."""

    learning_rate: float = 0.05
    weight_decay: float = 0.0
    warmup: int = 0
    clip: float = 10.0
    seed: int = 0
    settings: dict = dataclasses.field(default_factory=dict)


TRIALS = (
    Trial(
        learning_rate=0.2,
        warmup=3,
        seed=1,
        settings={"dropout": 0.3, "learning_rate_ratio": 2.0},
    ),
    Trial(
        weight_decay=0.1,
        clip=0.05,
        seed=4,
        settings={"rank": 3, "alpha": 8.0, "dropout": 0.5, "learning_rate_ratio": 0.5},
    ),
    Trial(settings={"rank": 1, "alpha": 3.0, "dropout": 0.1, "learning_rate_ratio": 4.0}),
)
"""All that may differ."""
PAIR = (
    Trial(learning_rate=0.2, warmup=3, clip=0.05),
    Trial(weight_decay=0.1, seed=4, settings={"rank": 3, "alpha": 8.0}),
)


def forward(params, x):
    def layer(x, kernel):
        return jax.nn.tanh(x @ kernel) + x, None

    x, _ = jax.lax.scan(layer, x, params["layers"])
    return x @ params["out"] + params["bias"][None]


def parameters(seed=0):
    """The base is that of all trials, a head (`bias`) is of each one's own."""
    keys = jax.random.split(jax.random.key(7), 2)
    return {
        "layers": jax.random.normal(keys[0], (2, 6, 6)) / 2,
        "out": jax.random.normal(keys[1], (6, 3)),
        "bias": jax.random.normal(jax.random.key(seed), (3,)),
    }


@dataclasses.dataclass
class Made:
    adapted: lj.Adapted
    trainable: dict
    frozen: lj.Frozen


def make(trial, names="lora"):
    """The model adapted by one method, or its layers by one and what follows by another."""
    settings = {"rank": 2, **trial.settings} if names != "full" else {}
    methods = [variants.make(name, **settings) for name in names.split(",")]
    targets = dict(zip(("layers", "out"), methods, strict=False))
    targets = targets if len(methods) > 1 else {"all-linear": methods[0]}
    adapted = lj.adapt(forward, targets=targets, also_train=["bias"] if names != "full" else ())
    key = jax.random.key(trial.seed)
    return Made(adapted, *adapted.init(key, parameters(trial.seed), jnp.zeros((1, 6))))


def batches(trial, start=0, size=8):
    step = start
    while True:
        rng = np.random.default_rng([trial.seed, step])
        x = rng.normal(size=(size, 6))
        dtype = jnp.result_type(float)
        weight = np.ones(size, dtype)
        weight[size - step % 3 :] = 0
        yield {"x": x.astype(dtype), "label": (x.sum(1) > 0).astype(np.int32), "weight": weight}
        step += 1


def sgd(hyper):
    rate = optim.traceable_schedule("linear", hyper["learning_rate"], 10, hyper["warmup"])
    return optax.chain(optax.add_decayed_weights(hyper["weight_decay"]), optax.sgd(rate))


def adam(hyper):
    rate = optim.traceable_schedule("linear", hyper["learning_rate"], 40, hyper["warmup"])
    return optim.adamw(rate, weight_decay=hyper["weight_decay"], clip=None)


def hyper_of(trial):
    return {n: getattr(trial, n) for n in ("learning_rate", "weight_decay", "warmup", "clip")}


def predict_with(adapted):
    def predict(trainable, frozen, batch, rng):
        return adapted.apply(trainable, frozen, batch["x"], dropout_key=rng)

    return predict


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


def build(all_trials, execution, names="lora", optimizer=sgd):
    """The program of trials, their states, and what each of them is like alone."""
    made = [make(trial, names) for trial in all_trials]
    rules = zip(*(each.adapted.rules for each in made), strict=True)
    rules = tuple((rule[0][0], union([variant for _, variant in rule])) for rule in rules)
    adapted = dataclasses.replace(made[0].adapted, rules=rules)
    like = jax.eval_shape(adapted.init, jax.random.key(0), parameters(), jnp.zeros((1, 6)))
    shared = [share(each.frozen, made[0].frozen) for each in made]
    wide = [widen(each.trainable, frozen, like) for each, frozen in zip(made, shared, strict=True)]
    step = make_step(adapted, predict_with(adapted), cross_entropy)
    states = [
        TrainState.create(adapted, optimizer(hyper_of(t)), w, f, jax.random.key(t.seed + 100))
        for t, (w, f) in zip(all_trials, wide, strict=True)
    ]

    def traced(hyper, state, frozen, batch):
        return step(optimizer(hyper), hyper["clip"], state, frozen, batch)

    hyper = [jax.tree.map(lambda x: jnp.asarray(x, float), hyper_of(t)) for t in all_trials]
    frozen = [each for _, each in wide]
    return trial_program.make_program(execution, traced, frozen, hyper), states, made


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


@functools.cache
def built(execution):
    """Of TRIALS with Adam: compiled once, with states to copy."""
    return build(TRIALS, execution, optimizer=adam)


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


def assert_close(ours, theirs, **tolerance):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert mine.shape == wanted.shape
        np.testing.assert_allclose(mine, wanted, **tolerance)


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


@pytest.mark.parametrize(("room", "tried"), [(0, ["each"]), (10**9, ["each", "vmap"])])
def test_a_step_of_all_that_memory_has_no_room_for_is_not_tried(room, tried):
    def start():
        return [jax.tree.map(jnp.copy, state) for state in built("each")[1]]

    given = [next(batches(trial)) for trial in TRIALS]
    _, seconds = fastest(
        lambda each: built(each)[0], start, given, steps=10**9, shapes=1, room=room
    )
    assert list(seconds)[:2] == tried


# -- the loop --------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def fit(
    folder,
    execution="each",
    chosen=TRIALS,
    killed_at=None,
    poison=(),
    keep_best=False,
    overflow=None,
    interrupted=None,
    progress=None,
    identity="these",
):
    """20 steps of all trials, as `test_train` has them for one."""
    if chosen is TRIALS:
        run, states, made = built(execution)
        states = jax.tree.map(jnp.copy, states)  # what is started with is donated
    else:
        run, states, made = build(chosen, execution, optimizer=adam)

    def source(number):
        def start(step):
            for each, batch in enumerate(batches(chosen[number], step), step + 1):
                if each == killed_at:
                    raise Killed
                if (number, each) in poison:
                    batch["x"] = batch["x"] * np.nan
                yield batch

        return start

    def evaluate(number, trainable):
        if (number, outcomes[number].steps) == overflow:
            return {"accuracy": 0.5, "eval_loss": math.inf}
        own = narrow(trainable, made[number].trainable)
        merged = made[number].adapted.merge(own, made[number].frozen)
        return {"accuracy": float(jnp.sin(jnp.abs(merged["out"]).sum() * 3))}

    outcomes = [Outcome() for _ in chosen]
    folders = [folder / str(number) for number in range(len(chosen))]
    logs = [metrics_log.Metrics(each) for each in folders]
    with checkpoint.Checkpoints(folder / "checkpoints") as checkpoints:
        saved = ManyTrials(checkpoints, {"trials": identity}, keep_best)
        states = loop.fit(
            run,
            states,
            loops=[Loop(20, 3, 7, 5)] * len(chosen),
            batches=[source(number) for number in range(len(chosen))],
            evaluate=evaluate,
            saved=saved,
            metrics=logs,
            outcomes=outcomes,
            progress=progress,
            interrupted=interrupted,
        )
        ended, _ = saved.best(states, outcomes)
    own = [narrow(e.trainable, m.trainable) for e, m in zip(ended, made, strict=True)]
    return own, outcomes, [metrics_log.read_metrics(each / "metrics.jsonl") for each in folders]


def without_seconds(outcome):
    rows = [{**row, "seconds": 0} for row in outcome.evaluations]
    return dataclasses.replace(outcome, seconds=0, evaluations=rows)


def assert_same_end(ours, undisturbed):
    """Bits, outcomes and lines of the metrics are those of trials that nothing disturbed."""
    assert_close(ours[0], undisturbed[0], rtol=0)
    assert [*map(without_seconds, ours[1])] == [*map(without_seconds, undisturbed[1])]
    assert ours[2] == undisturbed[2]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Runs that nothing disturbs, with their folder; made once for each execution."""

    @functools.cache
    def run(execution):
        folder = tmp_path_factory.mktemp(execution)
        return folder, fit(folder, execution, keep_best=True)

    return run


@pytest.mark.parametrize(
    "execution, killed_at", [("each", 1), ("vmap", 6), ("each", 8), ("vmap", 20)]
)
def test_interrupted_trials_end_with_the_same_bits(tmp_path, execution, killed_at, straight):
    _, undisturbed = straight(execution)
    with pytest.raises(Killed):
        fit(tmp_path, execution, killed_at=killed_at, keep_best=True)
    assert_same_end(fit(tmp_path, execution, keep_best=True), undisturbed)


@pytest.mark.parametrize("execution", ["each", "vmap"])
def test_trials_that_are_asked_to_end_save_that_step(tmp_path, execution, straight):
    """And end with the same bits when they continue."""
    for stop in (1, 7, 20):
        _, outcomes, rows = fit(
            tmp_path, execution, keep_best=True, interrupted=lambda step, stop=stop: step == stop
        )
        assert [(each.interrupted, each.steps) for each in outcomes] == [(True, stop)] * 3
        with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
            assert saved.steps()[-1] == stop
        due = {step for step in range(1, stop + 1) if step % 3 == 0 or step % 7 == 0}
        assert [{row["step"] for row in each} for each in rows] == [due | {20} & {stop}] * 3
    assert_same_end(fit(tmp_path, execution, keep_best=True), straight(execution)[1])


def test_trials_continue_from_the_layout_of_checkpoints(tmp_path, straight):
    """As all versions write it, here by hand; one trial's evaluation of step 3 stays the best."""
    run, states, made = built("each")
    population = run.start(jax.tree.map(jnp.copy, states))
    sources = [batches(trial) for trial in TRIALS]
    best = population
    for step in range(1, 6):
        population, _ = run.step(population, [next(source) for source in sources])
        best = jax.tree.map(jnp.copy, population) if step == 3 else best
    began = {"steps": 5, "seconds": 1.5, "metrics_last": {}, "metrics_best": {}, "best_step": None}
    began |= {"target_step": None, "target_seconds": None, "diverged": False, "metrics_first": {}}
    old = began | {"metrics_best": {"accuracy": 2.0}, "best_step": 3}
    new = began | {"interrupted": False, "audit": None, "evaluations": []}
    now, then = (jax.tree.map(lambda *x: jnp.stack(x), *each) for each in (population, best))
    wanted = narrow(jax.tree.map(np.array, best[0].trainable), made[0].trainable)
    with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
        meta = {"identity": {"trials": "these"}, "outcomes": [old, new, new]}
        saved.save(5, {"now": now, "best": then}, meta)
    ended, outcomes, rows = fit(tmp_path, keep_best=True)
    _, (trainables, others, all_rows) = straight("each")
    assert_close(ended[0], wanted, rtol=0)
    assert (outcomes[0].best_step, outcomes[0].evaluations) == (3, None)
    assert_close(ended[1:], trainables[1:], rtol=0)
    lines = [dataclasses.replace(each, metrics_checksum=None) for each in (*outcomes, *others)]
    assert [*map(without_seconds, lines[1:3])] == [*map(without_seconds, lines[4:])]
    assert all(each.seconds > 1.5 for each in outcomes)
    assert rows == [[row for row in each if row["step"] > 5] for each in all_rows]


@pytest.mark.parametrize("execution", ["each", "vmap"])
def test_a_trial_that_diverges_ends_and_the_others_go_on(tmp_path, execution, straight):
    said = []
    _, outcomes, rows = fit(
        tmp_path, execution, poison={(1, 11)}, progress=lambda *news: said.append(news)
    )
    assert [outcome.diverged for outcome in outcomes] == [False, True, False]
    assert [outcome.steps for outcome in outcomes] == [20, 12, 20]
    assert rows[1][-1]["step"] == 12 and math.isnan(rows[1][-1]["loss"])
    _, (_, _, wanted) = straight(execution)
    for number in (0, 2):
        assert rows[number] == wanted[number]
    losses = [{row["step"]: row.get("loss") for row in each} for each in rows]
    assert [step for step, _, _ in said] == [3, 5, 6, 7, 9, 10, 12, 14, 15, 18, 20]
    for step, loss, examples in said:
        going = (0, 2) if step >= 12 else (0, 1, 2)
        if step % 3 == 0:
            np.testing.assert_allclose(loss, np.mean([losses[n][step] for n in going]))
        rows_of = [8 - each % 3 for each in range(step)]
        assert examples == 3 * sum(rows_of[:12]) + 2 * sum(rows_of[12:])


def test_when_all_trials_have_diverged_nothing_more_is_saved(tmp_path):
    for _ in range(2):  # again, from the checkpoints, to the same end
        _, outcomes, rows = fit(tmp_path, poison={(0, 11), (1, 4), (2, 11)})
        assert [(each.diverged, each.steps) for each in outcomes] == [
            (True, 12),
            (True, 5),
            (True, 12),
        ]
        assert [each[-1]["step"] for each in rows] == [12, 5, 12]
        with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
            assert saved.steps() == [7, 10]


def test_a_score_that_is_not_finite_outlives_a_kill(tmp_path):
    undisturbed = fit(tmp_path / "straight", overflow=(1, 7))
    assert undisturbed[1][1].diverged and undisturbed[1][1].steps == 7
    with pytest.raises(Killed):
        fit(tmp_path / "killed", overflow=(1, 7), killed_at=13)
    again = fit(tmp_path / "killed", overflow=(1, 7))
    assert [*map(without_seconds, again[1])] == [*map(without_seconds, undisturbed[1])]
    assert again[1][1].metrics_last == {"accuracy": 0.5, "eval_loss": math.inf}


def test_the_best_evaluations_state_is_returned(tmp_path, straight):
    last, outcomes, rows = fit(tmp_path)
    _, (best, _, _) = straight("each")
    for number, outcome in enumerate(outcomes):
        scores = {row["step"]: row["accuracy"] for row in rows[number] if "accuracy" in row}
        assert outcome.best_step == max(scores, key=scores.__getitem__)
        same = all(
            np.array_equal(ours, theirs)
            for ours, theirs in zip(
                jax.tree.leaves(best[number]), jax.tree.leaves(last[number]), strict=True
            )
        )
        assert same == (outcome.best_step == 20)
    assert len({outcome.best_step for outcome in outcomes}) > 1


def test_checkpoints_of_other_trials_are_refused(tmp_path, straight):
    folder, _ = straight("each")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="belongs to a run with other trials; name another folder"):
        fit(tmp_path, keep_best=True, identity="those")
    with pytest.raises(ValueError, match="leaf"):
        fit(tmp_path, chosen=(*TRIALS, Trial(seed=9, settings=TRIALS[0].settings)))
