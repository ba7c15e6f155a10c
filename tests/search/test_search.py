"""Searches whose trials are scored by a formula in place of training."""

import json
import math
import shlex
from pathlib import Path

import commands
import fake_records
import pytest
import small_model

from experiments.search import ask
from experiments.search.search import Asked, Search
from experiments.sweeps import sweep_flag
from experiments.sweeps.folder import SweepFolder
from lora_jax.records import run_record

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
ROOT = Path(__file__).parents[2]
RATE, RANK = "config.optimizer.learning_rate", "config.variant.rank"
SPECS = [f"{RATE}=log:1e-5:1e-1", f"{RANK}=2,4"]
BEST = 1e-2


def quality(overrides):
    """Best at a rate of 1e-2 and rank 4."""
    return (
        0.9 - abs(math.log10(float(overrides[RATE]) / BEST)) / 10 - 0.05 * (overrides[RANK] == "2")
    )


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
    """The settings of all trials: 8 steps of a small model, 40 sentences held out."""
    root = tmp_path_factory.mktemp("small")
    reviews = small_model.write_reviews(root, train=104, validation=8)
    settings = {f"data.{name}": value for name, value in reviews.items()}
    settings |= {"model.name": str(small_model.write(root / "bert")), "train.batch_size": 8}
    return {**settings, "data.train": 0, "train.epochs": 1, "data.validation": 40}


@pytest.fixture(scope="module")
def search(changes):
    """Makes a search, and what trains its trials."""

    def make(folder, method="tpe", trials=12, budget=None, seed=0, specs=SPECS, most=10**9, **more):
        arguments = [f"--config={ROOT / 'configs' / 'quickstart.py'}:size=smoke"]
        arguments += [f"--config.{name}={value}" for name, value in {**changes, **more}.items()]
        asked = Asked(method, seed, trials, budget, per_round=4, factor=3)
        return Search(asked, folder, arguments, specs), trainer(folder, changes, most)

    return make


def trainer(folder, settings, most):
    """Leaves records of trials that have none; dies before the trial after `most`."""

    def train(found, loops, halving):
        for trial, loop in zip(found, loops, strict=True):
            if (folder.run(trial.name) / "record.json").exists():
                continue
            if len(list(folder.path.glob("trials/*/record.json"))) == most:
                raise Killed
            changes = {
                **settings,
                "optimizer.learning_rate": float(trial.overrides[RATE]),
                "variant.rank": int(trial.overrides[RANK]),
            }
            scores = {"accuracy": quality(trial.overrides)}
            fields = {"steps": loop.steps, "best_step": loop.steps}
            fake_records.write(
                folder.run(trial.name),
                "quickstart",
                "size=smoke",
                scores,
                changes=changes,
                **fields,
            )
            assert run_record.read(folder.run(trial.name)).config_digest == trial.digest

    return train


def ledger(folder):
    return json.loads((folder.path / "search.json").read_text())


def run(search, *given, **settings):
    made, train = search(*given, **settings)
    return made.run(train)


@pytest.fixture(scope="module")
def found(search, tmp_path_factory):
    folder = SweepFolder(tmp_path_factory.mktemp("tpe"))
    return folder, run(search, folder, trials=24)


def test_tpe_searches_where_scores_are_good(found):
    """After the draws that it begins with; the best is said with the command for the real run."""
    folder, said = found
    rounds = ledger(folder)["rounds"]
    assert [len(each) for each in rounds] == [4] * 6
    asked = [each for part in rounds for each in part]
    assert len({tuple(each.values()) for each in asked}) == 24
    drawn, chosen = asked[:12], asked[12:]
    mean = [sum(map(quality, part)) / 12 for part in (drawn, chosen)]
    assert mean[1] > mean[0] + 0.03
    best = max(asked, key=quality)
    assert ledger(folder)["best"]["score"] == quality(best)
    assert said[0].startswith("best: learning_rate=")
    assert f"accuracy {quality(best):.4g} on 40 held-out examples (24 trials, 192 " in said[0]
    assert f"--{RATE}={best[RATE]}" in said[1]
    assert "--config.data.validation=0" in said[1]


def test_the_command_for_the_best_trial_is_whole(found, tmp_path):
    """It has all that `train` requires, and its folder is outside that of the search."""
    folder, said = found
    words = shlex.split(said[1].partition(": ")[2])
    assert words[:3] == ["python", "-m", "experiments.train"]
    assert words[-1] == f"--workdir={folder.path}_best"
    (tmp_path / "lines.json").write_text(json.dumps([("best", words[2], words[3:])]))
    read = commands.run("tests/support/parse_lines.py", tmp_path / "lines.json")
    assert read.returncode == 0, read.stdout


def test_a_killed_search_asks_for_the_same_trials(found, search, tmp_path):
    folder = SweepFolder(tmp_path)
    for most in (6, 13):
        with pytest.raises(Killed):
            run(search, folder, trials=24, most=most)
    said = run(search, folder, trials=24)
    assert ledger(folder)["rounds"] == ledger(found[0])["rounds"]
    assert said == [line.replace(str(found[0].path), str(tmp_path)) for line in found[1]]


def test_trials_without_a_score_do_not_count(tmp_path):
    """They are told as failed, and are not asked for again."""
    axes = [sweep_flag.parse(f"{RANK}=1,2,3")]
    told = [({RANK: "1"}, None), ({RANK: "3"}, 0.5)]
    for _ in range(2):
        new = ask.ask(axes, told, 4, seed=1, maximise=True, integer=lambda key: True)
        assert new == [{RANK: "2"}]


def test_numbers_are_within_their_ranges_and_of_few_digits():
    axes = [sweep_flag.parse("config.a=log:1e-4:3e-3"), sweep_flag.parse("config.b=uniform:2:9")]
    new, same, other = (
        ask.ask(axes, [], 9, seed=seed, maximise=False, integer=lambda key: key == "config.b")
        for seed in (3, 3, 4)
    )
    for each in new:
        rate = each["config.a"]
        assert 1e-4 <= float(rate) <= 3e-3
        assert float(f"{float(rate):.4g}") == float(rate)
        assert 2 <= int(each["config.b"]) <= 9
    assert new == same != other


def test_a_random_search_has_the_trials_of_a_drawn_sweep_and_can_grow(search, tmp_path):
    folder = SweepFolder(tmp_path)
    axes = [sweep_flag.parse(spec) for spec in SPECS]
    drawn = sweep_flag.draw(axes, 7, 5, lambda key: key == RANK)
    run(search, folder, "random", 3, seed=5)
    assert ledger(folder)["rounds"] == [drawn[:3]]
    run(search, folder, "random", None, budget=60, seed=5)
    assert ledger(folder)["rounds"] == [drawn[:3], drawn[3:7]]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"data.validation": 0},
            "--search chooses by examples held out from training",
        ),
        ({"specs": ["config.seed=0:3"]}, "would choose the luckiest seed"),
        ({"specs": []}, "give what to search"),
        ({"method": "random", "budget": 50}, "--trials=12 take 96 steps, .* has 6 trials"),
        ({"trials": None, "budget": 7}, "--budget=7 is too small for trials of 8 steps"),
        ({"method": "halving", "trials": 2}, "needs 3 trials or more, not 2"),
        ({"method": "halving", "trials": 81}, "81 trials need 81 steps or more, not 8"),
        ({"method": "halving", "trials": 6, "budget": 27}, "take 28 steps, .* has 5 trials"),
    ],
)
def test_what_cannot_be_searched_is_said_in_one_line(search, tmp_path, wrong, said):
    with pytest.raises(ValueError, match=said) as caught:
        search(SweepFolder(tmp_path), **wrong)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_keeps_one_search(found, search):
    folder = found[0]
    for other, said in (
        ({"seed": 1}, "--sweep_seed=0, not 1"),
        ({"method": "random"}, "--search=tpe, not random"),
        ({"specs": SPECS[:1]}, "--sweep="),
    ):
        with pytest.raises(ValueError, match=said):
            search(folder, **other)


def test_halving_needs_one_program_and_says_so_before_it_begins(search, tmp_path):
    specs = [SPECS[0], "config.optimizer.schedule=linear,constant"]
    made, _ = search(SweepFolder(tmp_path), "halving", trials=6, specs=specs)
    for begin in (made.first, lambda: made.run(pytest.fail)):
        with pytest.raises(ValueError, match="trains one program, and these trials are of 2: "):
            begin()
    assert not list(tmp_path.iterdir())


def test_a_halving_goes_on_as_one_program_or_not_at_all(search, tmp_path, monkeypatch):
    folder = SweepFolder(tmp_path)
    with pytest.raises(Killed):
        run(search, folder, "halving", trials=6, most=2)
    made, _ = search(folder, "halving", trials=6)
    monkeypatch.setattr("experiments.sweeps.jobs.make", lambda found, size: [found[:2], found[2:]])
    with pytest.raises(ValueError, match="trains one program, and these trials are of 2: "):
        made.run(pytest.fail)
