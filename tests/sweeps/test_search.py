"""Searches whose trials are scored by a formula, not trained, and the command of a search."""

import dataclasses
import functools
import json
import math
import os
import shlex
import subprocess
import sys
import time
from operator import getitem

import commands
import fake_records
import pytest
import small_model
from commands import ROOT
from killed import Killed
from quickstart_sweep import sweep

from experiments.setup.config import fill
from experiments.setup.config_flags import read_config
from experiments.sweeps import sweep_flag
from experiments.sweeps.folder import SweepFolder
from experiments.sweeps.search import space
from experiments.sweeps.search.search import Asked, Search, score
from lora_jax.files import json_text
from lora_jax.records import run_record
from lora_jax.training.loop_settings import Loop

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
RATE, RANK = "config.optimizer.learning_rate", "config.variant.rank"
SPECS = [f"{RATE}=log:1e-5:1e-1", f"{RANK}=2,4"]
BEST = 1e-2


def quality(overrides):
    """Best at a rate of 1e-2, and not at rank 2."""
    away = abs(math.log10(float(overrides.get(RATE, BEST)) / BEST))
    return 0.9 - away / 10 - 0.05 * (overrides.get(RANK) == "2")


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

    def make(
        folder,
        method="tpe",
        trials=12,
        budget=None,
        seed=0,
        specs=SPECS,
        most=10**9,
        say=print,
        file=ROOT / "configs" / "quickstart.py",
        left=(),
        **more,
    ):
        given = {**changes, **more}
        flags = [f"--config.{name}={x}" for name, x in given.items() if name not in left]
        asked = Asked(method, seed, trials, budget, per_round=4, factor=3)
        made = Search(asked, folder, [f"--config={file}:size=smoke", *flags], specs, say)
        return made, trainer(folder, given, most)

    return make


def trainer(folder, settings, most):
    """Leaves records of trials that have none; dies before the trial after `most`."""

    def train(found, loops, halving):
        for trial, loop in zip(found, loops, strict=True):
            if (folder.run(trial.name) / "record.json").exists():
                continue
            if len(list(folder.path.glob("trials/*/record.json"))) == most:
                raise Killed
            names = [name.removeprefix("config.") for name in trial.overrides]
            swept = {
                each: functools.reduce(getitem, each.split("."), trial.plain) for each in names
            }
            scores = {"accuracy": quality(trial.overrides)}
            fields = {"steps": loop.steps, "best_step": loop.steps}
            fake_records.write(
                folder.run(trial.name),
                "quickstart",
                "size=smoke",
                scores,
                changes={**settings, **swept},
                **fields,
            )
            assert run_record.read(folder.run(trial.name)).config_digest == trial.digest

    return train


def ledger(folder):
    return json.loads((folder.path / "search.json").read_text())


def run(search, *given, **settings):
    made, train = search(*given, **settings)
    return made.run(train)


def searched(search, path, *given, **settings):
    """What a search has asked for, and what it has said of it."""
    folder, said = SweepFolder(path), []
    run(search, folder, *given, say=said.append, **settings)
    return [each for part in ledger(folder)["rounds"] for each in part], said


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


def test_the_best_trial_has_the_lowest_score_where_lower_is_better(search, tmp_path, monkeypatch):
    def lowest(*given):
        return dataclasses.replace(loop_of(*given), mode="min")

    loop_of = space.loop_of
    monkeypatch.setattr(space, "loop_of", lowest)
    asked, _ = searched(search, tmp_path, "random", trials=5)
    best = ledger(SweepFolder(tmp_path))["best"]["score"]
    assert best == min(map(quality, asked)) < max(map(quality, asked))


def printed(line):
    """The config that the printed command trains."""
    words = shlex.split(line.partition(": ")[2])
    return read_config(words[3:-1]).to_dict()


def test_the_command_for_the_best_trial_holds_nothing_out(search, tmp_path):
    """Not even where the config's file does; all else is as in the trial."""
    file, folder = tmp_path / "mine.py", SweepFolder(tmp_path / "search")
    file.write_text(
        "from configs import quickstart\n"
        "def get_config(arg=None):\n"
        "    config = quickstart.get_config(arg)\n"
        "    config.data.validation = 40\n"
        "    return config\n"
    )
    said = run(search, folder, "random", 3, file=file, left=["data.validation"])
    best = run_record.read(folder.run(ledger(folder)["best"]["name"])).config
    assert best["data"]["validation"] == 40
    best["data"]["validation"] = 0
    assert json_text.plain(fill(printed(said[1]))) == best
    assert said[1].startswith("to retrain with these settings (no example is held out; the ")


def test_a_killed_search_asks_for_the_same_trials(found, search, tmp_path):
    folder = SweepFolder(tmp_path)
    for most in (6, 13):
        with pytest.raises(Killed):
            run(search, folder, trials=24, most=most)
    said = run(search, folder, trials=24)
    assert ledger(folder)["rounds"] == ledger(found[0])["rounds"]
    assert said == [line.replace(str(found[0].path), str(tmp_path)) for line in found[1]]


IMPOSSIBLE = {
    "0": "rank must be an integer of at least 1, got 0",
    "64": "initialization 'pissa' takes rank = 64 directions, more than min(in, out) = 16",
}


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_combinations_that_cannot_work_are_left_out(method, search, tmp_path):
    """Each in one line that says why."""
    how = {"method": method, "specs": [SPECS[0], f"{RANK}=0,64,2,4"]}
    how |= {"variant.initialization": "pissa", "trials": 10}
    asked, said = searched(search, tmp_path, **how)
    there = ledger(SweepFolder(tmp_path))
    assert len(asked) == 10 and {each[RANK] for each in asked} == {"2", "4"}
    assert {each["values"][RANK] for each in there["left_out"]} == IMPOSSIBLE.keys()
    for line, each in zip(said, there["left_out"], strict=True):
        values = each["values"]
        start = f"left out: {RATE}={values[RATE]},{RANK}={values[RANK]}: "
        assert line.startswith(start) and IMPOSSIBLE[values[RANK]] in line
        assert "\n" not in line


def test_if_nothing_works_one_line_says_so(search, tmp_path):
    for ranks, said in (
        ("0,-1", f"no combination of --sweep works, such as {RANK}=.*: rank must be an integer"),
        ("0", "such as config.variant.rank=0: config.variant: rank must be an integer of at lea"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            search(SweepFolder(tmp_path), specs=[f"{RANK}={ranks}"])
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_trials_that_would_be_scored_on_the_development_set_are_left_out(search, tmp_path):
    specs = [f"{RANK}=2,4", "config.data.validation=0,40"]
    asked, said = searched(search, tmp_path, "random", 4, specs=specs, left=["data.validation"])
    assert [each["config.data.validation"] for each in asked] == ["40", "40"]
    assert sum("--search chooses by examples held out" in line for line in said) == 2


def test_equal_settings_are_tried_once(search, tmp_path):
    asked, said = searched(search, tmp_path, "random", 4, specs=[f"{RATE}=1e-3,0.001,2e-3"])
    assert len(asked) == 2
    assert "its settings are those of config.optimizer.learning_rate=" in said[0]


LENGTHS = [SPECS[0], "config.train.epochs=1,6"]


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_a_budget_is_spent_on_trials_of_unequal_lengths(method, search, tmp_path):
    """Of 8 and of 48 steps, the first drawn of 48: in the end, less than 8 are left, and not -1."""
    how = {"specs": LENGTHS, "seed": 1, "trials": None, "left": ["train.epochs"]}
    before = []
    for budget in (20, 173):
        asked, _ = searched(search, tmp_path, method, budget=budget, **how)
        steps = sum({"1": 8, "6": 48}[each["config.train.epochs"]] for each in asked)
        assert budget - 8 < steps <= budget
        assert asked[: len(before)] == before
        before = asked


@pytest.mark.parametrize("method", ["tpe", "random"])
@pytest.mark.parametrize("trials, budget, most", [(3, 400, 3), (12, 60, 7)])
def test_a_search_ends_at_either_limit(method, trials, budget, most, search, tmp_path):
    run(search, SweepFolder(tmp_path), method, trials=trials, budget=budget)
    asked = [each for part in ledger(SweepFolder(tmp_path))["rounds"] for each in part]
    assert len(asked) == most  # of eight steps each


@pytest.mark.parametrize("method", ["tpe", "random", "halving"])
@pytest.mark.parametrize("limit", [{"trials": 7}, {"trials": None, "budget": 200}])
def test_a_search_ends_when_all_combinations_were_tried(method, limit, search, tmp_path):
    specs = [f"{RATE}=1e-3,2e-3,3e-3,4e-3"]
    for _ in range(2):  # a repeated command finds nothing more to do
        asked, said = searched(search, tmp_path, method, specs=specs, **limit)
        assert len({tuple(each.values()) for each in asked}) == len(asked) == 4
    whole = "4 trials: all combinations of --sweep have been tried"
    assert said == [] if method == "halving" else [whole]


def test_a_dry_run_says_how_many_trials_there_may_be(search, tmp_path):
    for method, limit, said in (
        ("random", {"trials": 5}, "5 trials in all, about 40 training steps"),
        ("tpe", {"trials": 12}, "12 trials in all, about 96 training steps"),
        ("tpe", {"trials": None, "budget": 90}, "11 trials in all, about 88 training steps"),
        ("halving", {"trials": 6, "specs": SPECS[:1]}, "6 trials in all, about 28 training steps"),
    ):
        made, _ = search(SweepFolder(tmp_path), method, **limit)
        _, loops = made.first()
        assert made.outlook(loops) == said
    assert not list(tmp_path.iterdir())


def test_trials_without_a_score_do_not_count(tmp_path):
    """They are told as failed, and are not asked for again."""
    axes = [sweep_flag.parse(f"{RANK}=1,2,3")]
    told = [({RANK: "1"}, None), ({RANK: "3"}, 0.5)]
    for _ in range(2):
        new = space.ask(axes, told, 4, seed=1, maximise=True, integer=lambda key: True)
        assert new == [{RANK: "2"}]


def test_only_a_completed_record_of_a_trials_own_settings_has_its_score(tmp_path):
    folder, found = sweep(tmp_path, "config.seed=0:3")
    good, foreign, failed = found
    ends = [(good, "completed"), (good, "completed"), (failed, "failed")]
    for place, (of, status) in zip(found, ends, strict=True):
        fake_records.write(
            folder.run(place.name),
            "quickstart",
            "size=smoke",
            {"accuracy": 0.25},
            changes={"seed": of.config.seed},
            status=status,
        )
    scores = [score(folder, each, Loop(8)) for each in (good, foreign, failed)]
    assert scores == [0.25, None, None]


def test_numbers_are_within_their_ranges_and_of_few_digits():
    axes = [sweep_flag.parse("config.a=log:1e-4:3e-3"), sweep_flag.parse("config.b=uniform:2:9")]
    new, same, other = (
        space.ask(axes, [], 9, seed=seed, maximise=False, integer=lambda key: key == "config.b")
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
        ({"specs": ["seed=0:3"]}, "would choose the luckiest seed"),
        ({"specs": ["config.data.draw=0:3"]}, "would choose the luckiest seed"),
        ({"specs": []}, "give what to search"),
        ({"trials": None, "budget": 7}, "--budget=7 is too small for trials of 8 steps"),
        ({"method": "halving", "trials": 2}, "needs 3 trials or more, not 2"),
        ({"method": "halving", "train.epochs": 0}, "with config.train.epochs 0 none is trained$"),
        ({"method": "halving", "trials": 81}, "81 trials need 81 steps or more, not 8"),
        ({"method": "halving", "trials": 6, "budget": 27}, "take 28 steps, .* has 5 trials"),
        (
            {"method": "halving", "trials": None, "budget": 9},
            "--budget=9 is too small for --search=halving: 3 trials of 8 steps take 14$",
        ),
        (
            {"method": "halving", "trials": 6, "budget": 9},
            "--budget=9 is too small for --search=halving: 3 trials of 8 steps take 14$",
        ),
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


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"trials": 5}, "--trials=6, not 5"),
        ({"trials": 7}, "--trials=6, not 7"),
        ({"trials": 6, "budget": 100}, "--budget=None, not 100"),
    ],
)
def test_a_halving_keeps_its_trials_and_budget(search, tmp_path, other, said):
    folder = SweepFolder(tmp_path)
    run(search, folder, "halving", trials=6, specs=SPECS[:1])
    before = ledger(folder)
    with pytest.raises(
        ValueError, match=f"belongs to a search with {said}; name another --workdir"
    ):
        search(folder, "halving", specs=SPECS[:1], **other)
    assert ledger(folder) == before


def test_halving_needs_one_program_and_says_so_before_it_begins(search, tmp_path):
    specs = [SPECS[0], "config.optimizer.schedule=linear,constant"]
    made, _ = search(SweepFolder(tmp_path), "halving", trials=6, specs=specs)
    for begin in (made.first, lambda: made.run(pytest.fail)):
        with pytest.raises(ValueError, match="trains one program, and these trials are of 2: "):
            begin()
    assert not list(tmp_path.iterdir())


def test_a_search_that_another_command_has_gone_on_with_is_not_overwritten(search, tmp_path):
    folder = SweepFolder(tmp_path)
    late, train = search(folder, "random", trials=3)
    run(search, folder, "random", trials=2)
    before = ledger(folder)
    with pytest.raises(ValueError, match="another command has gone on with this search"):
        late.run(train)
    assert ledger(folder) == before


RANGE = f"--sweep={RATE}=log:1e-4:1e-1"


def command(*arguments):
    done = commands.run("experiments.sweep", *arguments)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Of 8 steps, with 40 sentences held out."""
    return [*small_model.flags(tmp_path_factory.mktemp("small")), RANGE, "--noaudit"]


def records(folder):
    found = {path.parent.name: run_record.read(path.parent) for path in folder.rglob("record.json")}
    return {name: (r.status, r.note, r.steps, r.metrics_last, r.rungs) for name, r in found.items()}


def test_the_process_that_searches_leaves_accelerators_to_its_workers(flags, tmp_path):
    """It traces shapes before anything else, and would hold a device that workers need."""
    other = tmp_path / "other.py"
    other.write_text(
        "import runpy, jax\n"
        "jax.config.update('jax_platforms', 'accelerator')\n"
        "runpy.run_module('experiments.sweep', run_name='__main__', alter_sys=True)\n"
    )
    more = ["--search=random", "--budget=7", f"--workdir={tmp_path / 'search'}"]
    done = commands.run(other, *flags, *more)
    assert done.stderr == "error: --budget=7 is too small for trials of 8 steps\n"


@pytest.mark.slow
def test_a_halving_that_is_killed_is_the_same_halving(flags, tmp_path):
    flags = [*flags, "--search=halving", "--trials=6", "--halving_factor=2", "--execution=each"]
    code, said, error = command(*flags, f"--workdir={tmp_path / 'whole'}")
    assert code == 0, error
    assert error.startswith("devices: 1 process on the CPU, with ")
    whole = records(tmp_path / "whole")
    assert sorted(each[0] for each in whole.values()) == ["completed", *["stopped"] * 5]
    assert "best: learning_rate=" in said
    best = json.loads((tmp_path / "whole" / "search.json").read_text())["best"]
    assert whole[best["name"]][0] == "completed"
    code, said, error = command(*flags, f"--workdir={tmp_path / 'whole'}", "--dry_run")
    assert (code, "6 trials, 0 to train, in 0 jobs" in said) == (0, True), error

    killed = tmp_path / "killed"
    line = [sys.executable, "-m", "experiments.sweep", *flags, f"--workdir={killed}"]
    process = subprocess.Popen(line, cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL)
    while not list(killed.glob("trials/.programs/*/rungs.json")) and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    code, said, error = command(*flags, f"--workdir={killed}")
    assert code == 0, error
    assert records(killed) == whole
    assert json.loads((killed / "search.json").read_text())["best"] == best


@pytest.mark.slow
def test_tpe_trains_rounds_in_several_processes(flags, tmp_path):
    flags = [
        *flags,
        "--search=tpe",
        "--per_round=2",
        "--processes=2",
        f"--workdir={tmp_path / 's'}",
    ]
    code, said, error = command(*flags, "--trials=2")
    assert code == 0, error
    code, said, error = command(*flags, "--trials=4")
    assert code == 0, error
    rounds = json.loads((tmp_path / "s" / "search.json").read_text())["rounds"]
    assert [len(each) for each in rounds] == [2, 2]
    assert [each[0] for each in records(tmp_path / "s").values()] == ["completed"] * 4
    assert "(4 trials, 32 training steps in all)" in said
