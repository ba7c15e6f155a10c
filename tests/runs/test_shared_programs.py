"""Trials share a program where they differ in numbers alone, not in shapes or structure."""

import dataclasses

import pytest
import traced_batches
from group_trials import QUERY

from experiments.setup import from_config
from experiments.sweeps.grouping import groups, program_key
from lora_jax.training.masking import union
from variants import make as make_variant

pytestmark = pytest.mark.usefixtures("standard_promotion")

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


def test_all_settings_of_model_data_and_training_tell_programs_apart_but_two(config_of):
    config, alike = config_of(), set()
    for name in ("model", "data", "quantize", "train"):
        section = getattr(config, name)
        for field in dataclasses.fields(section):
            value = "sgd" if field.name == "optimizer" else ("another",)
            changed = {name: dataclasses.replace(section, **{field.name: value})}
            if program_key(dataclasses.replace(config, **changed)) == program_key(config):
                alike.add(f"{name}.{field.name}")
    assert alike == {"data.draw", "train.target_score"}
    for changed in ({"also_train": ("head",)}, {"targets": ("value/kernel",)}):
        assert program_key(dataclasses.replace(config, **changed)) != program_key(config)
    drawn = [program_key(config_of(variant="eva", seed=seed)) for seed in range(2)]
    assert drawn[0] != drawn[1]  # each seed sees other examples, and gets other ranks


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
        make_variant("lora", rank=3, max_rank=9),
    ]
    assert union(chosen) == dataclasses.replace(chosen[0], max_rank=9)
    assert union(chosen[:1] * 3) == chosen[0]
