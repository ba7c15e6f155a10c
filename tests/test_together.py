"""A group of trials against each of them run alone: the same files, records, data and scores."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy
import small_model

from configs import quickstart
from experiments import predictions, together
from experiments.groups import groups, program_key, union
from experiments.run import run
from experiments.together import Together, run_together
from lora_jax import metrics_log, records
from variants import make as make_variant

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model.write(tmp_path_factory.mktemp("model") / "small")


def config(model="minilm", variant="lora", **changes):
    made = quickstart.get_config(f"variant={variant},size=smoke")
    settings = {
        "model.name": str(model),
        "data.train": 64,
        "data.validation": 64,
        "data.max_length": 24,
        "data.buckets": 2,
        "train.batch_size": 8,
        "train.evaluations": 4,
        "train.checkpoint_every": 3,
        "train.log_every": 1,
    }
    made.update_from_flattened_dict(settings)
    made.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return made.to_dict()


def trials(model, **changes):
    return [
        config(model, **changes),
        config(model, optimizer__learning_rate=1e-2, optimizer__warmup_ratio=0.4, **changes),
        config(model, seed=1, variant__rank=3, variant__alpha=5.0, **changes),
        config(model, seed=2, variant__dropout=0.2, optimizer__clip=0.1, **changes),
    ]


def folders(root, number):
    return [root / f"trial_{each}" for each in range(number)]


def without_time(record):
    """A record but for what no two runs have in common."""
    times = {"seconds": 0.0, "seconds_total": 0.0, "peak_memory_bytes": 0}
    times["tokenised_per_second"] = None
    evaluations = [{**each, "seconds": 0.0} for each in record.evaluations]
    return dataclasses.replace(record, **times, evaluations=evaluations)


def assert_alike(ours, theirs):
    """Records of one trial: equal, but for rounding in what was measured."""
    mine, other = (dataclasses.asdict(without_time(record)) for record in (ours, theirs))
    for name in ("metrics_best", "metrics_last"):
        assert mine.pop(name) == pytest.approx(other.pop(name), abs=0.05)
    for each in (mine, other):
        for row in each["evaluations"]:
            row.pop("score")
        each.pop("best_step")
    assert mine == other


def shapes(path):
    return {name: each.shape for name, each in safetensors.numpy.load_file(path).items()}


@pytest.mark.parametrize(
    ("execution", "select"), [("each", "last"), ("vmap", "best"), ("map", "last")]
)
def test_what_trials_leave_is_what_they_leave_alone(model, tmp_path, execution, select):
    chosen = trials(model, train__select=select)
    assert groups(chosen) == [[0, 1, 2, 3]]
    found = run_together(chosen, folders(tmp_path / "both", 4), execution=execution)
    for number, (settings, ours) in enumerate(zip(chosen, found, strict=True)):
        alone = run(settings, folders(tmp_path / "alone", 4)[number])
        assert_alike(ours, alone)
        assert records.read(folders(tmp_path / "both", 4)[number]) == ours
        here, there = (folders(tmp_path / name, 4)[number] for name in ("both", "alone"))
        assert {p.name for p in here.iterdir()} == {p.name for p in there.iterdir()} - {
            "checkpoints"
        }
        assert (here / "config.json").read_bytes() == (there / "config.json").read_bytes()
        rows = [metrics_log.read_metrics(each / "metrics.jsonl") for each in (here, there)]
        assert [row.keys() for row in rows[0]] == [row.keys() for row in rows[1]]
        for name in ("loss", "grad_norm"):  # of the first step, before Adam amplifies rounding
            assert rows[0][0][name] == pytest.approx(rows[1][0][name], rel=1e-4)
        mine, other = (predictions.read(each)["validation"] for each in (here, there))
        np.testing.assert_array_equal(mine.labels, other.labels)
        assert mine.outputs.shape == other.outputs.shape
        assert shapes(here / "adapter.safetensors") == shapes(there / "adapter.safetensors")
    assert not list((tmp_path / "both" / ".programs").iterdir())


@pytest.mark.parametrize("name", ["adalora", "dora", "vera", "full"])
def test_every_kind_of_variant(model, tmp_path, name):
    chosen = [
        config(model, name),
        config(model, name, seed=3, optimizer__learning_rate=2e-3, optimizer__weight_decay=0.1),
    ]
    found = run_together(chosen, folders(tmp_path / "both", 2), execution="vmap")
    for settings, ours, where in zip(chosen, found, folders(tmp_path / "alone", 2), strict=True):
        assert_alike(ours, run(settings, where))


def test_trials_on_quantised_weights(model, tmp_path):
    chosen = [config(model, quantize__storage="nf4", seed=seed) for seed in range(2)]
    found = run_together(chosen, folders(tmp_path / "both", 2), execution="map")
    for settings, ours, where in zip(chosen, found, folders(tmp_path / "alone", 2), strict=True):
        assert_alike(ours, run(settings, where))


def test_a_frozen_head_that_each_trial_draws_is_its_own(model, tmp_path):
    """The checkpoint has no head for this way to pool, and nothing trains it."""
    changes = {"model__pool": "cls", "also_train": (), "targets": ("query/kernel",)}
    chosen = [config(model, seed=seed, **changes) for seed in range(2)]
    assert groups(chosen) == [[0, 1]]
    for execution in ("each", "vmap"):
        where = folders(tmp_path / execution, 2)
        for settings, ours, here, there in zip(
            chosen,
            run_together(chosen, where, execution=execution),
            where,
            folders(tmp_path / "alone", 2),
            strict=True,
        ):
            assert_alike(ours, run(settings, there))
            logs = [metrics_log.read_metrics(each / "metrics.jsonl") for each in (here, there)]
            assert logs[0][0]["loss"] == pytest.approx(logs[1][0]["loss"], rel=1e-5)


@pytest.mark.parametrize("storage", ["none", "nf4"])
def test_there_is_one_copy_of_the_base(model, tmp_path, storage):
    chosen = [config(model, quantize__storage=storage, seed=seed) for seed in range(3)]
    made, wrong = together._build(range(3), chosen, folders(tmp_path, 3))
    assert not wrong
    first, *others = (jax.tree.leaves(made[number].frozen.base) for number in range(3))
    assert len(first) > 10
    for leaves in others:
        assert all(mine is theirs for mine, theirs in zip(leaves, first, strict=True))


class Killed(BaseException):
    """As a signal: nothing of it is handled on the way."""


@pytest.mark.parametrize("call", [6, 15])
def test_a_group_killed_at_an_evaluation_goes_on(model, tmp_path, monkeypatch, call):
    chosen = trials(model)
    straight = run_together(chosen, folders(tmp_path / "straight", 4), execution="each")
    evaluate, calls = Together.evaluate, iter(range(1, 1000))

    def killed(self, number, trainable):
        if next(calls) == call:
            raise Killed
        return evaluate(self, number, trainable)

    with monkeypatch.context() as patch:
        patch.setattr(Together, "evaluate", killed)
        with pytest.raises(Killed):
            run_together(chosen, folders(tmp_path / "killed", 4), execution="each")
    assert not list((tmp_path / "killed").rglob("record.json"))
    again = run_together(chosen, folders(tmp_path / "killed", 4), execution="each")
    assert [*map(without_time, again)] == [*map(without_time, straight)]
    for one, other in zip(
        folders(tmp_path / "killed", 4), folders(tmp_path / "straight", 4), strict=True
    ):
        assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
        adapters = [(each / "adapter.safetensors").read_bytes() for each in (one, other)]
        assert adapters[0] == adapters[1]


def test_a_group_killed_among_its_records_writes_the_missing_ones(model, tmp_path, monkeypatch):
    chosen, where = trials(model), folders(tmp_path, 4)
    write, calls = records.write, iter(range(1, 100))

    def killed(folder, record):
        if next(calls) == 3:
            raise Killed
        write(folder, record)

    with monkeypatch.context() as patch:
        patch.setattr(records, "write", killed)
        with pytest.raises(Killed):
            run_together(chosen, where, execution="each")
    before = [records.read(each) for each in where]
    assert [record is not None for record in before] == [True, True, False, False]
    steps = []
    with monkeypatch.context() as patch:
        evaluate = Together.evaluate
        patch.setattr(Together, "evaluate", lambda *a: steps.append(1) or evaluate(*a))
        after = run_together(chosen, where, execution="each")
    assert not steps  # nothing was trained again
    assert after[:2] == before[:2]
    assert [record.status for record in after] == ["completed"] * 4


def test_a_trial_that_cannot_work_does_not_stop_the_rest(model, tmp_path):
    chosen = trials(model)
    chosen[1]["variant"]["rank"] = 999
    found = run_together(chosen, folders(tmp_path, 4), execution="each")
    assert "rank 999 exceeds" in str(found[1])
    assert [found[n].status for n in (0, 2, 3)] == ["completed"] * 3


def test_a_trial_whose_record_is_damaged_does_not_stop_the_rest(model, tmp_path):
    chosen, where = trials(model), folders(tmp_path, 4)
    records.claim(where[1], chosen[1])
    (where[1] / "record.json").write_text("{", encoding="utf-8")
    found = run_together(chosen, where, execution="each")
    assert "trial_1" in str(found[1]) and isinstance(found[1], ValueError)
    assert [found[n].status for n in (0, 2, 3)] == ["completed"] * 3


def test_a_trial_that_could_not_be_made_for_once_is_made_up_for(model, tmp_path, monkeypatch):
    """The first process trains without it, and is killed; the second one trains all."""
    chosen, where = trials(model), folders(tmp_path, 4)
    build, evaluate = together.build, Together.evaluate
    calls = iter(range(1, 1000))

    def failing(settings, materials):
        if settings == chosen[2]:
            raise RuntimeError("no such device")
        return build(settings, materials)

    def killed(self, number, trainable):
        if next(calls) == 5:
            raise Killed
        return evaluate(self, number, trainable)

    with monkeypatch.context() as patch:
        patch.setattr(together, "build", failing)
        patch.setattr(Together, "evaluate", killed)
        with pytest.raises(Killed):
            run_together(chosen, where, execution="each")
    found = run_together(chosen, where, execution="each")
    assert [record.status for record in found] == ["completed"] * 4
    assert not list((tmp_path / ".programs").iterdir())


def test_checkpoints_outlive_a_trial_that_cannot_be_made_for_once(model, tmp_path, monkeypatch):
    """They are of all trials: nothing goes on without one, and nothing of them is lost."""
    chosen, where = trials(model), folders(tmp_path, 4)
    build, evaluate, calls = together.build, Together.evaluate, []

    def killed(self, number, trainable):
        calls.append(number)
        if len(calls) == 5:
            raise Killed
        return evaluate(self, number, trainable)

    def failing(settings, materials):
        if settings == chosen[2]:
            raise OSError("the disk is away")
        return build(settings, materials)

    monkeypatch.setattr(Together, "evaluate", killed)
    with pytest.raises(Killed):
        run_together(chosen, where, execution="each")
    with monkeypatch.context() as patch:
        patch.setattr(together, "build", failing)
        found = run_together(chosen, where, execution="each")
    assert str(found[2]) == "the disk is away"
    for number in (0, 1, 3):
        assert "trial_2 cannot be made now: the disk is away" in str(found[number])
    found = run_together(chosen, where, execution="each")
    assert [record.status for record in found] == ["completed"] * 4
    assert len(calls) == 5 + 3 * 4  # the first of four evaluations was not made again


def test_a_trial_that_diverges_is_recorded(model, tmp_path):
    chosen = trials(model)
    chosen[2]["optimizer"] |= {"learning_rate": 1e30, "clip": 1e30}
    found = run_together(chosen, folders(tmp_path, 4), execution="vmap")
    assert [record.status for record in found] == [
        "completed",
        "completed",
        "diverged",
        "completed",
    ]
    assert "not finite" in found[2].note
    assert not (tmp_path / "trial_2" / "adapter.safetensors").exists()


def test_the_chosen_execution_is_kept(model, tmp_path):
    chosen = [config(model, seed=seed) for seed in range(2)]
    found = run_together(chosen, folders(tmp_path, 2))
    assert [record.status for record in found] == ["completed"] * 2
    again = run_together(chosen, folders(tmp_path, 2))
    assert again == found


# -- which trials share a program -----------------------------------------------------------------

SAME = (
    {"seed": 3},
    {"optimizer__learning_rate": 1e-5, "optimizer__weight_decay": 0.5},
    {"optimizer__warmup_steps": 2, "optimizer__clip": 3.0, "optimizer__b2": 0.98},
    {"variant__alpha": 1.0, "variant__rank": 2},
    {"variant__dropout": 0.3, "variant__learning_rate_ratio": 8.0},
)
OTHER = (
    {"model__name": "other"},
    {"data__train": 32},
    {"data__draw": 1},
    {"train__batch_size": 4},
    {"train__epochs": 2},
    {"targets": ("query/kernel",)},
    {"quantize__storage": "nf4"},
    {"optimizer__schedule": "cosine"},
    {"optimizer__head_learning_rate": 1e-3},
    {"variant__initialization": "pissa"},
)


@pytest.mark.parametrize("changes", SAME)
def test_numbers_share_a_program(changes):
    assert program_key(config(**changes)) == program_key(config())


@pytest.mark.parametrize("changes", OTHER)
def test_shapes_and_structure_do_not(changes):
    assert program_key(config(**changes)) != program_key(config())


def test_classes_of_variants_do_not():
    keys = {program_key(config(variant=name)) for name in ("lora", "dora", "lora_plus", "vera")}
    assert len(keys) == 4
    ranks = [config(variant="adalora", variant__rank=rank) for rank in (10, 12)]
    assert len(groups(ranks)) == 2  # its penalty is of a matrix as large as the rank


QUERY = (("query/kernel", {"rank": 4}), "value/kernel")


@pytest.mark.parametrize(
    ("ranks", "one"), [((4, 8), False), ((2, 4), False), ((2, 8), True), ((4, 4), True)]
)
def test_targets_with_settings_of_their_own_stay_apart(model, tmp_path, ranks, one):
    """Where a rank makes two kinds of targets one, or one two, arrays are shared otherwise."""
    chosen = [
        config(model, variant__rank=rank, seed=seed, targets=QUERY)
        for seed, rank in enumerate(ranks)
    ]
    assert (len(groups(chosen)) == 1) == one
    if ranks == (2, 8):
        found = run_together(chosen, folders(tmp_path / "both", 2), execution="vmap")
        for settings, ours, there in zip(
            chosen, found, folders(tmp_path / "alone", 2), strict=True
        ):
            assert_alike(ours, run(settings, there))


def test_kinds_of_targets_that_a_program_would_confuse_are_apart():
    def targets(*ranks):
        return tuple(
            (f"{name}/kernel", {"rank": rank})
            for name, rank in zip(("query", "key"), ranks, strict=True)
        )

    chosen = [config(targets=targets(*ranks)) for ranks in ((4, 8), (8, 4), (4, 8), (2, 4))]
    assert len({program_key(each) for each in chosen}) == 1
    assert groups(chosen) == [[0, 2], [1], [3]]
    assert groups(chosen[::3]) == [[0, 1]]  # ranks 4 and 8 hold both, and stay two kinds


def test_budgets_of_adalora_are_shared_by_the_same_targets():
    def targets(*alphas):
        names = ("query", "key", "value")
        pairs = zip(names, alphas, strict=True)
        return tuple((f"{name}/kernel", {"alpha": float(alpha)}) for name, alpha in pairs)

    chosen = [config("minilm", "adalora", targets=targets(*a)) for a in ((8, 16, 16), (8, 8, 16))]
    assert len(groups(chosen)) == 2
    lengths = [config("minilm", "adalora", variant__total_steps=n) for n in (None, 1000)]
    assert len(groups(lengths)) == 2


def test_a_union_holds_all():
    chosen = [
        make_variant("lora", rank=2),
        make_variant("lora", rank=7, dropout=0.1),
        make_variant("lora", rank=3, learning_rate_ratio=2.0),
    ]
    both = union(chosen)
    assert (both.rank, both.max_rank) == (7, 7)
    assert both.dropout and both.learning_rate_ratio != 1
    assert union(chosen[:1] * 3) == chosen[0]
