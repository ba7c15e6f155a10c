"""The line on memory that a run begins with, and what is refused before weights are read."""

import re

import pytest
import small_model
from small_language import write_places

from configs import instruct
from experiments.planning import abstract_step
from experiments.planning.abstract_step import AbstractStep, Batches, stays
from experiments.runs import run
from experiments.runs.announce import Held, TooManyTrialsError, announce, describe
from experiments.runs.run import run_together
from experiments.runs.run_options import RunOptions
from experiments.setup.config import parse
from experiments.setup.devices import mesh_of
from experiments.setup.load import read_texts
from lora_jax.models.published.weight_files import Weights
from lora_jax.sharding import memory

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return small_model.smoke_runs(tmp_path_factory.mktemp("small"))


@pytest.fixture
def room(monkeypatch):
    """Says how much memory there is; and nothing may be read of weights."""

    def says(count):
        monkeypatch.setattr(memory, "host_memory", lambda: count)

    def unread(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr(Weights, "read", unread)
    monkeypatch.setattr(Weights, "part", unread)
    return says


EACH = 4000
"""Bytes of a token that trains, where `simple` says so; of one that is evaluated a tenth."""


@pytest.fixture
def simple(monkeypatch):
    """Batches take what is easily calculated; nothing is traced."""

    def training(step, rows, tokens):
        return EACH * rows * tokens // step.config.train.accumulate

    def evaluation(step, rows, tokens):
        return EACH * rows * tokens // 10

    monkeypatch.setattr(abstract_step, "training", training)
    monkeypatch.setattr(abstract_step, "evaluation", evaluation)


def held_by(config):
    """What a run holds while it is loaded, and what of it stays there."""
    step = AbstractStep.of(config)
    return Held.of(step), stays(step)


def line(config, *args, **kwargs):
    said = []
    announce(config, said.append, *args, **kwargs)
    assert len(said) == 1 and "\n" not in said[0]
    return said[0]


def refusal(config, *args, **kwargs):
    with pytest.raises(ValueError, match=r".") as caught:
        announce(config, pytest.fail, *args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_says_it_before_it_begins(smoke, tmp_path, room):
    (held, _), said = held_by(smoke()), []
    room(2**40)
    with pytest.raises(AssertionError, match="weights were read"):
        run.run(smoke(), tmp_path / "run", say=said.append)
    begins, then = said
    assert re.fullmatch(
        rf"Estimated memory: \d\.\d MiB of 1,024\.0 GiB \(weights {memory.size(held.weights)}, .*"
        r"gradients and a batch of 8 x 24 tokens \d\.\d MiB\)",
        begins,
    )
    assert " 0.0 " not in begins.partition("gradients")[0]
    assert then == describe(smoke().data, read_texts(smoke()))


def test_weights_that_do_not_fit_are_refused_before_texts_are_read(
    smoke, tmp_path, room, monkeypatch
):
    monkeypatch.setattr(
        "experiments.runs.announce.read_texts", lambda config: pytest.fail("texts were read")
    )
    total = held_by(smoke())[0].total
    room(total - 1)
    both = f"{memory.size(total)}, and {memory.size(total - 1)} of memory are available"
    with pytest.raises(ValueError, match=rf"config\.model '.*bert' \(weights .*\) takes {both}"):
        run.run(smoke(), tmp_path / "run", say=pytest.fail)
    assert not (tmp_path / "run").exists()


ROWS = 2**16
LARGE = {"train__batch_size": ROWS}
TAKES = EACH * ROWS * 24


def test_a_batch_that_surely_does_not_fit_is_refused(smoke, tmp_path, room, simple):
    """At half of what is estimated; between that and all of it, a run begins with a warning."""
    held, stays = held_by(smoke(**LARGE))
    room(held.total + TAKES)
    said = line(smoke(**LARGE))
    taken = f"gradients and a batch of {ROWS} x 24 tokens {memory.size(TAKES)})"
    assert said.endswith(taken)
    doubt = ", which may not be enough: if so, raise config.train.accumulate from 1 "
    for enough in (held.total + TAKES - 1, stays + TAKES // 2):
        room(enough)
        assert f"{doubt}to 2 (" in line(smoke(**LARGE))
    room(stays + TAKES // 2 - 1)
    with pytest.raises(
        ValueError, match=r"does not fit into memory: 5\.9 GiB of 2\.9 GiB \("
    ) as caught:
        run.run(smoke(**LARGE), tmp_path / "run", say=pytest.fail)
    said = str(caught.value)
    assert said.startswith(f"config.train.batch_size {ROWS} in parts of {ROWS} rows does not fit")
    assert f"{taken}; raise config.train.accumulate from 1 to 4 (the same batch" in said
    assert not (tmp_path / "run").exists()


def test_who_does_as_the_refusal_says_is_not_refused(smoke, room, simple):
    room(held_by(smoke(**LARGE))[0].total + TAKES // 5)
    assert "from 1 to 8 (" in refusal(smoke(**LARGE))
    assert "enough" not in line(smoke(**LARGE, train__accumulate=8))


def test_a_batch_that_trains_in_parts_is_evaluated_as_a_whole(smoke, room, simple):
    config = smoke(**LARGE, train__accumulate=ROWS)
    held, stays = held_by(config)
    enough = held.total + TAKES // 10
    room(enough)
    said = line(config)
    assert f" of {memory.size(enough)} (weights " in said
    assert said.endswith(f"x 24 tokens to evaluate {memory.size(TAKES // 10)})")
    room(stays + TAKES // 20 - 1)
    for each in (config, smoke(**LARGE)):  # nor would parts do where they are not asked for yet
        assert "); lower config.train.batch_size, or" in refusal(each)


def test_ids_that_do_not_fit_need_no_estimate(smoke, room):
    room(2**34)
    assert "its ids take 294,912.0 GiB, and 16.0 GiB are available; lower config.train" in refusal(
        smoke(train__batch_size=2**40)
    )


def test_devices_that_the_cpu_stands_for_share_its_memory(smoke, room, simple):
    _, stays = held_by(smoke(**LARGE))
    mesh = mesh_of([8, 1, 1])
    room(stays + TAKES // 2)
    assert "; over 8 devices)" in line(smoke(**LARGE), mesh)
    room(stays + TAKES // 2 - 1)
    assert "; over 8 devices); " in refusal(smoke(**LARGE), mesh)


def test_trials_of_one_program_say_what_they_hold_together(smoke, tmp_path, room, simple):
    (one, _), said = held_by(smoke()), []
    configs = [smoke(seed=seed) for seed in range(3)]
    folders = [tmp_path / str(seed) for seed in range(3)]
    total = one.weights + 3 * (one.trained + one.optimizer + one.saved)
    room(total + EACH * 8 * 24)
    ended = run_together(configs, folders, say=said.append)
    assert [str(each) for each in ended] == ["weights were read"] * 3
    assert said[::2] == [line(configs[0], trials=3)] * 3  # each begins anew
    assert f", what is trained {memory.size(3 * one.trained)}, " in said[0]
    assert "for 3 trials, gradients and a batch of 8 x 24 tokens " in said[0]
    room(total - 1)
    ended = run_together(configs, folders, say=pytest.fail)
    assert all("are available; take a smaller model" in str(each) for each in ended)
    assert all(isinstance(each, TooManyTrialsError) for each in ended)
    assert all("or fewer trials at a time (--per_job; with --search, --" in str(e) for e in ended)
    (alone,) = run_together(configs[:1], folders[:1], say=pytest.fail)
    assert not isinstance(alone, TooManyTrialsError)


def test_trials_that_step_at_once_have_as_many_batches(smoke, tmp_path, room, simple):
    configs = [smoke(seed=seed, **LARGE) for seed in range(3)]
    folders = [tmp_path / str(seed) for seed in range(3)]
    room(held_by(configs[0])[0].total + TAKES)
    ended = run_together(configs, folders, RunOptions("vmap"), say=pytest.fail)
    assert f"x 24 tokens {memory.size(3 * TAKES)}); " in str(ended[0])
    assert isinstance(ended[0], TooManyTrialsError) and "or train fewer trials" in str(ended[0])
    assert not any(folder.exists() for folder in folders)


def test_batches_grow_with_their_rows_and_fall_with_parts(smoke):
    def of(rows, parts=1):
        config = smoke(train__batch_size=rows, train__accumulate=parts)
        return Batches.of(AbstractStep.of(config), read_texts(config))

    one, two, halved = of(512), of(1024), of(1024, parts=2)
    assert two.training == pytest.approx(2 * one.training, rel=0.02)
    assert halved.training == pytest.approx(one.training, rel=0.05)
    assert one.most == one.training > one.evaluation > 0


def test_a_language_models_batches_are_of_its_own_texts(tmp_path):
    """Of rows as long as they are, not as they may be; of logits where completions are."""
    places = write_places(tmp_path)
    arg = f"method=lora,source=commonsense,folder={places / 'sets'},task=openbookqa,train=0"
    made = instruct.get_config(arg)
    made.update_from_flattened_dict({"model.name": str(places / "model"), "variant.rank": 4})
    config = parse(made.to_dict())
    step, texts = AbstractStep.of(config), read_texts(config)
    batches = Batches.of(step, texts)
    assert batches.trained == texts.longest < 256 == config.data.max_length
    logits = 8 * 4 * texts.tokenizer.backend.get_vocab_size()
    more = min(config.model.chunk, texts.longest) - int(texts.encoded["train"].labels.max())
    assert abstract_step.training(step, 8, texts.longest) - batches.training > more * logits / 2


def test_a_rank_that_makes_an_adapter_larger_than_its_weight_is_named(smoke, room):
    config = smoke(variant__rank=500)
    found = AbstractStep.of(config).frozen.spec.adapted[0]
    layers, (rows, columns) = len(found.matrices), found.use.matrix
    trained, own = 500 * layers * (rows + columns), layers * rows * columns
    advice = (
        f"the adapter of '{found.use.path}' .*trains {trained:,} numbers and its weight has "
        f"{own:,}: lower its rank"
    )
    room(2**40)
    with pytest.warns(UserWarning, match=advice):
        assert " of 1,024.0 GiB (weights " in line(config)
    room(held_by(config)[0].total - 1)
    with pytest.warns(UserWarning, match=advice):
        refusal(config)
