"""A group of trials against each of them run alone: the same files, records, data and scores."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy
import small_model
import traced_batches

from configs import quickstart
from experiments.runs import predictions, run
from experiments.runs.group import Alone, Together, with_batches_for
from experiments.runs.how import How
from experiments.setup import from_config
from experiments.setup.config import parse
from experiments.setup.experiment import build
from experiments.sweeps.grouping import groups, program_key
from lora_jax import data
from lora_jax.adapters.adapter_file import load_adapter
from lora_jax.records import metrics_log, run_record
from lora_jax.training.masking import union
from lora_jax.training.trial_program import EXECUTIONS
from variants import make as make_variant

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model.write(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    return small_model.write_reviews(tmp_path_factory.mktemp("reviews"), train=32, validation=32)


@pytest.fixture(scope="module")
def config_of(model, reviews):
    """Configs of four steps, with two evaluations, on a small model and few sentences."""

    def make(**changes):
        data = {f"data__{name}": value for name, value in reviews.items()}
        return config(str(model), **data, **changes)

    return make


@pytest.fixture(scope="module")
def two_kinds(config_of):
    """Configs of trials that adapt a square kind of matrix and another one."""
    return lambda **changes: config_of(**{"targets": ("query/kernel", "down/kernel"), **changes})


@pytest.fixture(scope="module")
def tiny(config_of):
    """Configs of three trials of two steps with few adapters, for what goes wrong."""

    def make(number=3, **changes):
        few = {"targets": ("query/kernel",), "data__train": 16, **changes}
        return [config_of(seed=seed, **few) for seed in range(number)]

    return make


def config(model="minilm", variant="lora", **changes):
    made = quickstart.get_config(f"variant={variant},size=smoke")
    settings = {
        "model.name": model,
        "data.train": 0,
        "data.max_length": 8,  # so that what is traced is of one length
        "data.buckets": 1,
        "train.batch_size": 8,
        "train.evaluations": 2,
        "train.checkpoint_every": 3,
        "train.log_every": 1,
    }
    made.update_from_flattened_dict(settings)
    made.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return parse(made.to_dict())


def folders(root, number):
    return [root / f"trial_{each}" for each in range(number)]


def without_time(record):
    """A record but for what no two runs have in common."""
    times = {"seconds": 0.0, "seconds_total": 0.0, "peak_memory_bytes": 0}
    times |= {"tokenised_per_second": None, "metrics_check": None}  # the metrics have times
    evaluations = [{**each, "seconds": 0.0} for each in record.evaluations]
    return dataclasses.replace(record, **times, evaluations=evaluations)


def assert_alike(here, there):
    """Folders of one trial: the same files, and equal but for rounding in what was measured."""
    names = [{path.name for path in each.iterdir()} for each in (here, there)]
    assert names[0] == names[1] - {"checkpoints"}
    assert (here / "config.json").read_bytes() == (there / "config.json").read_bytes()
    assert shapes(here / "adapter.safetensors") == shapes(there / "adapter.safetensors")
    rows = [metrics_log.read_metrics(each / "metrics.jsonl") for each in (here, there)]
    assert [row.keys() for row in rows[0]] == [row.keys() for row in rows[1]]
    for name in ("loss", "grad_norm"):  # of the first step, before Adam amplifies rounding
        assert rows[0][0][name] == pytest.approx(rows[1][0][name], rel=1e-5)
    losses = [[row["loss"] for row in each if "loss" in row] for each in rows]
    np.testing.assert_allclose(*losses, rtol=2e-3)

    mine, other = (
        dataclasses.asdict(without_time(run_record.read(each))) for each in (here, there)
    )
    audits = mine.pop("audit"), other.pop("audit")
    for each in audits:
        assert 0 < each["error"] < each["tolerance"]
    assert audits[0]["batches"] == audits[1]["batches"] == 1
    for name in ("metrics_best", "metrics_last"):
        assert mine.pop(name) == pytest.approx(other.pop(name), abs=0.05)
    for each in (mine, other):
        for row in each["evaluations"]:
            row.pop("score")
        each.pop("best_step")
    assert mine == other

    said, expected = (predictions.read(each)["validation"] for each in (here, there))
    np.testing.assert_array_equal(said.labels, expected.labels)
    np.testing.assert_allclose(said.outputs, expected.outputs, atol=0.02)
    assert_scored(here)


def assert_scored(folder):
    """A trial's saved predictions have the scores of the state that was to be saved."""
    record, said = run_record.read(folder), predictions.read(folder)["validation"]
    best = record.config["train"]["select"] == "best"
    scores = record.metrics_best if best else record.metrics_last
    assert np.mean(said.outputs.argmax(1) == said.labels) == scores["accuracy"]


def shapes(path):
    return {name: each.shape for name, each in safetensors.numpy.load_file(path).items()}


@pytest.fixture(scope="module")
def chosen(two_kinds):
    """Trials of one group that differ in all that they may, saved as they were at their best."""
    best = {"train__select": "best", "variant__dropout": 0.1, "data__train": 31}
    rate = {"optimizer__learning_rate": 3e-2, "optimizer__warmup_ratio": 0.4}
    return [
        two_kinds(**best),
        two_kinds(seed=1, variant__rank=3, variant__alpha=5.0, **rate, **best),
        two_kinds(seed=2, optimizer__clip=0.1, data__draw=1, **{**best, "variant__dropout": 0.2}),
    ]


@pytest.fixture(scope="module")
def alone(chosen, tmp_path_factory):
    """The folders of the last two of them, each trained by itself."""
    where = folders(tmp_path_factory.mktemp("alone"), 3)
    with jax.numpy_dtype_promotion("standard"):
        for settings, folder in zip(chosen[1:], where[1:], strict=True):
            run.run(settings, folder)
    return where


@pytest.fixture(scope="module")
def one_by_one(chosen, tmp_path_factory):
    """The folders of those trials as one group, which step one after the other."""
    where = folders(tmp_path_factory.mktemp("each"), 3)
    with jax.numpy_dtype_promotion("standard"):
        assert run.run_together(chosen, where, How("each")) == [*map(run_record.read, where)]
    return where


def test_what_trials_leave_is_what_they_leave_alone(one_by_one, alone):
    for number in (1, 2):
        assert_alike(one_by_one[number], alone[number])
    assert_scored(one_by_one[0])
    assert not list((one_by_one[0].parent / ".programs").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["vmap", "map"])
def test_so_do_trials_that_step_at_once(chosen, alone, tmp_path, execution):
    where = folders(tmp_path, 3)
    assert run.run_together(chosen, where, How(execution)) == [*map(run_record.read, where)]
    for number in (1, 2):
        assert_alike(where[number], alone[number])
    assert_scored(where[0])
    assert not list((tmp_path / ".programs").iterdir())


def test_trials_that_draw_other_examples_have_the_batches_that_they_have_alone(config_of):
    """Where all step at once, at the length of the longest of them."""
    many = {"data__train": 16, "data__max_length": 64, "data__buckets": 6}
    drawn = [build(config_of(seed=each, data__draw=each, **many)) for each in range(3)]
    alone = [each.first_epoch() for each in drawn]
    own = [[batch.padded_length for batch in epoch] for epoch in alone]
    longest = [max(lengths) for lengths in zip(*own, strict=True)]
    assert own != [longest] * 3
    for execution in EXECUTIONS:
        for number, each in enumerate(with_batches_for(execution, drawn)):
            epoch = each.first_epoch()
            for batch, same in zip(epoch, alone[number], strict=True):
                np.testing.assert_array_equal(batch.indices, same.indices)
            expected = own[number] if execution == "each" else longest
            assert [batch.padded_length for batch in epoch] == expected


QUERY = (("query/kernel", {"rank": 4}), "value/kernel")
KINDS = (
    *QUERY,
    ("key/kernel", {"name": "adalora"}),
    ("output/kernel", {"name": "dora"}),
    ("up/kernel", {"name": "vera"}),
    ("down/kernel", {"name": "full"}),
)


def test_predictions_are_what_was_scored(config_of, tmp_path, monkeypatch):
    """They are not computed again, and their bits do not depend on who shares the program."""
    many = {"data__train": 8, "data__max_length": 64, "data__buckets": 3}
    many["data__unlabelled"] = False
    calls, plan = [], data.eval_plan

    def noted(each, batch_size, boundaries):
        calls.append(boundaries)
        return plan(each, batch_size, boundaries)

    monkeypatch.setattr(data, "eval_plan", noted)
    configs = [config_of(seed=each, data__draw=each, **many) for each in range(3)]
    alone = {build(each).texts.boundaries for each in configs}
    three, two = folders(tmp_path / "three", 3), folders(tmp_path / "two", 2)
    records = run.run_together(configs, three, How("each", audit=False))
    assert [each.status for each in records] == ["completed"] * 3
    assert len(calls) == sum(len(each.evaluations) for each in records)
    assert set(calls) == alone and len(alone) > 1
    run.run_together(configs[:0:-1], two, How("each", audit=False))
    for one, other in zip(two, three[:0:-1], strict=True):
        outputs = [predictions.read(each)["validation"].outputs for each in (one, other)]
        np.testing.assert_array_equal(*outputs)


def test_predictions_are_of_the_saved_state(config_of, tmp_path, monkeypatch):
    """Of the best one, although a later one was scored last."""
    evaluate, calls = Alone.evaluate, []

    def worse(group, number, trainable):
        calls.append(number)
        return {**evaluate(group, number, trainable), "accuracy": 1 / len(calls)}

    monkeypatch.setattr(Alone, "evaluate", worse)
    config = config_of(data__train=32, train__select="best", train__evaluations=2)
    record = run.run(config, tmp_path)
    assert record.best_step < record.steps
    mine = build(config)
    trainable = load_adapter(tmp_path, mine.trainable, mine.frozen)[0]
    expected = mine.predictions(mine.adapted_call(trainable), "validation")["validation"]
    np.testing.assert_array_equal(predictions.read(tmp_path)["validation"].outputs, expected)


@pytest.mark.slow
def test_every_kind_of_variant(config_of, tmp_path):
    """All in one model, two of them with ranks of their own; the second trial is widened."""
    other = {"optimizer__learning_rate": 2e-3, "optimizer__weight_decay": 0.1}
    chosen = [
        config_of(targets=KINDS, variant__rank=8),
        config_of(targets=KINDS, variant__rank=2, seed=3, **other),
    ]
    where = folders(tmp_path, 2)
    assert run.run_together(chosen, where, How("vmap")) == [*map(run_record.read, where)]
    run.run(chosen[1], tmp_path / "alone")
    assert_alike(where[1], tmp_path / "alone")


@pytest.mark.slow
def test_a_frozen_head_that_each_trial_draws_is_its_own(config_of, tmp_path):
    """Over quantised weights; the checkpoint has no head for this pooling: nothing trains it."""
    changes = {"model__pool": "cls", "also_train": (), "targets": ("query/kernel",)}
    chosen = [config_of(quantize__storage="nf4", seed=seed, **changes) for seed in range(2)]
    assert groups(chosen) == [[0, 1]]
    where = folders(tmp_path, 2)
    assert run.run_together(chosen, where, How("vmap")) == [*map(run_record.read, where)]
    run.run(chosen[1], tmp_path / "alone")
    assert_alike(where[1], tmp_path / "alone")


@pytest.mark.parametrize("storage", ["none", "nf4"])
def test_there_is_one_copy_of_the_base(tiny, tmp_path, storage):
    made, wrong = run._build(range(3), tiny(quantize__storage=storage), folders(tmp_path, 3))
    assert not wrong
    first, *others = (jax.tree.leaves(made[number].frozen.base) for number in range(3))
    assert len(first) > 10
    for leaves in others:
        assert all(mine is theirs for mine, theirs in zip(leaves, first, strict=True))


class Killed(BaseException):
    """As a signal: nothing of it is handled on the way."""


@pytest.mark.slow
def test_a_group_killed_again_and_again_is_the_group_that_was_not(
    chosen, one_by_one, tmp_path, monkeypatch
):
    """Before its first checkpoint, amid its second evaluation, and among its records."""
    where = folders(tmp_path, 3)

    def killed(place, name, call):
        true, calls = getattr(place, name), iter(range(1, 1000))

        def dies(*arguments):
            if next(calls) == call:
                raise Killed
            return true(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(place, name, dies)
            with pytest.raises(Killed):
                run.run_together(chosen, where, How("each"))
        return [run_record.read(folder) for folder in where]

    assert killed(Together, "evaluate", 2) == [None] * 3
    assert killed(Together, "evaluate", 5) == [None] * 3
    before = killed(run_record, "write", 2)
    assert [record is not None for record in before] == [True, False, False]
    with monkeypatch.context() as patch:
        patch.setattr(Together, "evaluate", None)  # nothing is trained again
        after = run.run_together(chosen, where, How("each"))
    assert after[0] == before[0]
    assert after == [run_record.read(folder) for folder in where]
    for one, other in zip(where, one_by_one, strict=True):
        assert without_time(run_record.read(one)) == without_time(run_record.read(other))
        for name in ("metrics.jsonl", "adapter.safetensors"):
            assert (one / name).read_bytes() == (other / name).read_bytes()


def test_trials_that_cannot_be_trained_do_not_stop_the_rest(tiny, tmp_path):
    """One of a rank that cannot be, one whose record is damaged."""
    chosen, where = tiny(4), folders(tmp_path, 4)
    chosen[1] = tiny(4, variant__rank=999, variant__initialization="pissa")[1]
    run_record.claim(where[2], chosen[2].plain)
    (where[2] / "record.json").write_text("{", encoding="utf-8")
    found = run.run_together(chosen, where, How("each"))
    assert "takes rank = 999 directions" in str(found[1])
    assert "trial_2" in str(found[2]) and isinstance(found[2], ValueError)
    for number in (0, 3):
        assert found[number].status == "completed"
        assert_scored(where[number])


@pytest.mark.slow
def test_a_trial_that_could_not_be_made_for_once_is_made_up_for(tiny, tmp_path, monkeypatch):
    """The first process trains without it, and is killed; the second one trains all."""
    chosen, where = tiny(), folders(tmp_path, 3)
    build, evaluate = run.build, Together.evaluate
    calls = iter(range(1, 1000))

    def failing(config, *more, **named):
        if config == chosen[1]:
            raise RuntimeError("no such device")
        return build(config, *more, **named)

    def killed(self, number, trainable):
        if next(calls) == 3:
            raise Killed
        return evaluate(self, number, trainable)

    with monkeypatch.context() as patch:
        patch.setattr(run, "build", failing)
        patch.setattr(Together, "evaluate", killed)
        with pytest.raises(Killed):
            run.run_together(chosen, where, How("each"))
    found = run.run_together(chosen, where, How("each"))
    assert [record.status for record in found] == ["completed"] * 3
    assert [record.config["seed"] for record in found] == [0, 1, 2]
    assert not list((tmp_path / ".programs").iterdir())


@pytest.mark.slow
def test_checkpoints_outlive_a_trial_that_cannot_be_made_for_once(tiny, tmp_path, monkeypatch):
    """They are of all trials: nothing goes on without one, and nothing of them is lost."""
    chosen, where = tiny(), folders(tmp_path, 3)
    build, evaluate, calls = run.build, Together.evaluate, []

    def killed(self, number, trainable):
        calls.append(number)
        if len(calls) == 4:
            raise Killed
        return evaluate(self, number, trainable)

    def failing(config, *more, **named):
        if config == chosen[1]:
            raise OSError("the disk is away")
        return build(config, *more, **named)

    monkeypatch.setattr(Together, "evaluate", killed)
    with pytest.raises(Killed):
        run.run_together(chosen, where, How("each"))
    with monkeypatch.context() as patch:
        patch.setattr(run, "build", failing)
        found = run.run_together(chosen, where, How("each"))
    assert str(found[1]) == "the disk is away"
    for number in (0, 2):
        assert "trial_1 cannot be made now: the disk is away" in str(found[number])
    found = run.run_together(chosen, where, How("each"))
    assert [record.status for record in found] == ["completed"] * 3
    assert len(calls) == 4 + 3  # the first of two evaluations was not made again


@pytest.mark.slow
def test_a_trial_that_diverges_is_recorded(tiny, tmp_path):
    """Of three that step at once, with batches of two lengths."""
    lengths = {"data__max_length": 48, "data__buckets": 2}
    chosen = tiny(**lengths)
    chosen[1] = tiny(**lengths, optimizer__learning_rate=1e30, optimizer__clip=1e30)[1]
    found = run.run_together(chosen, folders(tmp_path, 3), How("vmap"))
    assert [record.status for record in found] == ["completed", "diverged", "completed"]
    assert "not finite" in found[1].note
    assert not (tmp_path / "trial_1" / "adapter.safetensors").exists()


def test_the_chosen_execution_is_kept(tiny, tmp_path):
    found = run.run_together(tiny(2), folders(tmp_path, 2))
    assert [record.status for record in found] == ["completed"] * 2
    again = run.run_together(tiny(2), folders(tmp_path, 2))
    assert again == found


# -- which trials share a program -----------------------------------------------------------------

NUMBERS = (
    {"data__draw": 1},
    {},
    {"seed": 3},
    {"optimizer__learning_rate": 1e-5, "optimizer__weight_decay": 0.5},
    {"optimizer__warmup_steps": 2, "optimizer__clip": 3.0, "optimizer__b2": 0.98},
    {"variant__initialization": "normal", "variant__scale": "alpha"},
)
OTHER = (
    {},
    {"model__name": "other"},
    {"data__train": 32},
    {"train__batch_size": 4},
    {"train__epochs": 2},
    {"targets": ("query/kernel",)},
    {"quantize__storage": "nf4"},
    {"optimizer__schedule": "cosine"},
    {"optimizer__head_learning_rate": 1e-3},
    {"variant__initialization": "pissa"},
    {"variant__dropout": 0.3},  # without any, nothing is drawn
    {"variant__learning_rate_ratio": 8.0},
)


def test_numbers_share_a_program(two_kinds):
    assert groups([two_kinds(**each) for each in NUMBERS]) == [[*range(len(NUMBERS))]]


def test_ranks_do_too(chosen):
    assert groups(chosen) == [[0, 1, 2]]


def test_shapes_and_structure_do_not(two_kinds):
    found = groups([two_kinds(**each) for each in OTHER])
    assert sorted(found) == [[number] for number in range(len(OTHER))]


def test_classes_of_variants_do_not(config_of):
    keys = {program_key(config_of(variant=name)) for name in ("lora", "dora", "lora_plus", "vera")}
    assert len(keys) == 4
    ranks = [config_of(variant="adalora", variant__rank=rank) for rank in (10, 12)]
    assert len(groups(ranks)) == 2  # its penalty is of a matrix as large as the rank


@pytest.mark.parametrize(
    ("ranks", "one"), [((4, 8), False), ((2, 4), False), ((2, 8), True), ((4, 4), True)]
)
def test_targets_with_settings_of_their_own_stay_apart(config_of, ranks, one):
    """Where a rank makes two kinds of targets one, or one two, arrays are shared otherwise."""
    chosen = [
        config_of(variant__rank=rank, seed=seed, targets=QUERY) for seed, rank in enumerate(ranks)
    ]
    assert (len(groups(chosen)) == 1) == one


def test_kinds_of_targets_stay_two(config_of):
    def targets(*ranks):
        return tuple(
            (f"{name}/kernel", {"rank": rank})
            for name, rank in zip(("query", "key"), ranks, strict=True)
        )

    chosen = [config_of(targets=targets(*ranks)) for ranks in ((4, 8), (8, 4), (4, 8), (2, 4))]
    assert groups(chosen) == [[0, 1, 2, 3]]
    for subset in (chosen, chosen[::3]):  # two kinds, however many ranks there is room for
        made = [from_config.make_targets(each).values() for each in subset]
        assert len({union(column) for column in zip(*made, strict=True)}) == 2


def test_budgets_of_adalora_are_shared_by_the_same_targets(config_of):
    def targets(*alphas):
        names = ("query", "key", "value")
        pairs = zip(names, alphas, strict=True)
        return tuple((f"{name}/kernel", {"alpha": float(alpha)}) for name, alpha in pairs)

    chosen = [config_of(variant="adalora", targets=targets(*a)) for a in ((8, 16, 16), (8, 8, 16))]
    assert len(groups(chosen)) == 2
    lengths = [config_of(variant="adalora", variant__total_steps=n) for n in (None, 1000)]
    assert len(groups(lengths)) == 2


def test_what_is_traced_is_what_a_run_computes_with(config_of):
    traced_batches.assert_are_those_of_the_run(
        config_of(data__max_length=32, data__buckets=3, train__batch_size=4)
    )


def test_a_union_holds_all():
    chosen = [
        make_variant("lora", rank=2),
        make_variant("lora", rank=7, alpha=3.0),
        make_variant("lora", rank=3, max_rank=5),
    ]
    assert union(chosen) == dataclasses.replace(chosen[0], max_rank=7)
    assert union(chosen[:1] * 3) == chosen[0]
