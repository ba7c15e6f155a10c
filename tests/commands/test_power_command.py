"""`experiments.power`: its tables against the functions behind them, and mistakes in one line."""

import dataclasses
import functools
import shutil

import commands
import numpy as np
import pytest
from fake_records import write

from configs.studies import against_lora
from experiments import tune
from experiments.analysis import power, recorded_runs
from experiments.analysis.power import Design, Task
from experiments.reports import registered
from experiments.studies import registration
from experiments.studies.protocol import Protocol
from lora_jax.records import run_record

SCORES = {
    "lora": (80.0, 81.5, 79.0, 82.0),
    "dora": (80.5, 81.0, 80.0, 82.5),
    "vera": (79.0, 81.0, 79.5, 80.0),
}

BOTH = (power.difference_power, power.equivalence_power)


@functools.cache
def said(*flags):
    ended = commands.run("experiments.power", *flags)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_without_records():
    lines = said("--sd=0.6", "--seeds=10").splitlines()
    error, df = 0.6 / np.sqrt(10), 9
    assert lines[0] == "Power 80%, level 0.05."
    smallest, margin = (f"{power.smallest(f, error, df, 0.05, 0.8):.2f}" for f in BOTH)
    seeds = [str(power.seeds_needed(f, Design((Task(0.6),)), 1.0, 0.05)) for f in BOTH]
    assert lines[-1].split() == ["one", "task", "0.60", "10", smallest, margin, *seeds]
    more = said("--sd=0.6", "--tests=14", "--difference=0.5", "--power=0.9", "--level=0.1")
    lines, design = more.splitlines(), Design((Task(0.6),))
    assert lines[0] == "Power 90%, level 0.1 for 14 tests, so 0.0071 for Holm's first."
    asked = (design, 0.5, 0.1 / 14, 0.9)
    seeds = [str(power.seeds_needed(f, *asked)) for f in BOTH]
    assert lines[-1].split() == ["one", "task", "0.60", *seeds]
    assert "seeds to find 0.5" in lines[1]


def test_without_records_but_with_examples():
    flags = ("--sd=0.6", "--sd_examples=20", "--examples=900", "--sd_rest=30")
    lines = said(*flags, "--seeds=10", "--difference=2").splitlines()
    design = Design((Task(0.6, 20, 30, 900),))
    (mean,) = (line for line in lines if line.startswith("one task"))
    found = power.detectable(design.error(10), design.df(10), 0.05)
    assert mean.split()[4] == f"{found:.2f}"
    times = power.examples_needed(BOTH[0], design, 10, 2.0, 0.05)
    assert f"{times:.2g} times" in mean
    grid = {line.split()[0]: line.split()[1:] for line in lines[-5:]}
    wanted = power.detectable(design.error(20, 4.0), design.df(20, 4.0), 0.05)
    assert grid["20"][3] == f"{wanted:.2f}" and [*grid] == ["5", "10", "20", "40", "100"]
    few = said("--sd=0.6", "--sd_examples=40", "--examples=300", "--seeds=10").splitlines()
    assert few[3].split().count("never") == 2  # seeds to find 1, and to show less


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A registered study of two tasks, with the same scores but for a constant."""
    folder = tmp_path_factory.mktemp("results") / "study"  # below the folder that is named
    changes = {"reference": "dora", "margin": 2.0, "rows": [*SCORES], "columns": ["mrpc", "rte"]}
    changes |= {"rates": {"per_decade": 2, "around": 0, "most_more": 0}, "seeds": [*range(4)]}
    protocol = Protocol.of({**against_lora.STUDY, **changes}, "STUDY")
    cells = tune.make_cells(against_lora, protocol, "")
    planned = {task: {cell.row: cell.planned for cell in row} for task, row in cells.items()}
    digest = registration.register(folder, "against_lora", protocol, planned).digest
    for task in protocol.columns:
        for row, scores in SCORES.items():
            rate = planned[task][row].middle
            own = {"optimizer.learning_rate": rate, "study.registration": digest}
            runs = {seed: (score, own) for seed, score in enumerate(scores)}
            held = protocol.tuning.held_out
            runs[protocol.tuning.seeds[0]] = (50.0, {**own, "data.validation": held})
            for seed, (score, own) in runs.items():
                arg = f"task={task},row={row},seed={seed}"
                found = {"accuracy": (score - 10 * (task == "rte")) / 100}
                where = folder / task / row / str(seed)
                write(where, "studies.against_lora", arg, found, changes=own)
    return folder.parent


def test_a_registered_study(study):
    lines = said(f"--results={study}").splitlines()
    tests = 2
    begin = "differences from DoRA, mean over 2 tasks. Power 80%, level 0.05 for"
    assert f"{begin} {tests} tests" in lines[0]
    scores = {row: np.array(each) for row, each in SCORES.items()}
    assert len(lines) == 5
    for line, row, label in zip(lines[3:], ("lora", "vera"), ("LoRA", "VeRA"), strict=True):
        sd = np.std(scores[row] - scores["dora"], ddof=1)
        ratio = sd**2 / (scores[row].var(ddof=1) + scores["dora"].var(ddof=1))
        error, design, level = sd / np.sqrt(2) / 2, Design((Task(sd), Task(sd))), 0.05 / tests
        expected = [label, f"{sd:.2f}", f"{sd:.2f}", f"{ratio:.2f}", "4"]
        expected += [f"{power.smallest(f, error, 3, level, 0.8):.2f}" for f in BOTH]
        expected += [str(power.seeds_needed(f, design, 2.0, level)) for f in BOTH]
        assert line.split() == expected
    other = said(f"--results={study}", "--reference=lora", "--tests=3", "--difference=1")
    assert "differences from LoRA, mean over 2 tasks. Power 80%, level 0.05 for 3" in other
    assert "seeds to find 1 " in other


def test_a_method_that_collapsed_does_not_speak_for_the_others(study, tmp_path):
    """Its row alone changes; a row finds what the report of the study says is detectable."""
    shutil.copytree(study / "study", tmp_path / "study")
    own, lost = tmp_path / "study" / "rte" / "vera" / "2", {"accuracy": 0.1}
    collapsed = dataclasses.replace(run_record.read(own), metrics_last=lost, metrics_best=lost)
    (own / "record.json").unlink()
    run_record.write(own, collapsed)
    before, after = (said(f"--results={each}").splitlines() for each in (study, tmp_path))
    assert before[3] == after[3] and before[4] != after[4]
    (found,) = registered.found(tmp_path, recorded_runs.find(tmp_path))
    for line, gain in zip(after[3:], found.methods, strict=True):
        assert line.split()[0] == gain.label and line.split()[5] == f"{gain.gain.detectable:.2f}"


def test_a_study_without_runs_is_not_that_of_others(study, tmp_path):
    """Two of one name: the margin and the reference are those of the one whose runs these are."""
    shutil.copytree(study / "study", tmp_path / "b")
    known = registration.read(tmp_path / "b")
    for name, margin in (("a", 3.0), ("c", 4.0)):
        wider = dataclasses.replace(known.protocol, margin=margin, reference="lora")
        registration.register(tmp_path / name, "against_lora", wider, known.cells)
    assert said(f"--results={tmp_path}") == said(f"--results={study}")


def test_a_task_without_scored_runs_or_noise_says_nothing_of_seeds(study, tmp_path):
    """Tuning scores are others, and differences that do not vary have no power."""
    held = against_lora.STUDY["tuning"]["seeds"][0]
    shutil.copytree(study / "study", tmp_path / "study")
    for path in (tmp_path / "study" / "rte").glob("*/*/"):
        if path.name != str(held):
            shutil.rmtree(path)
    text = said(f"--results={tmp_path}")
    assert "Tuned, but not scored yet: RTE" in text and "mean over" not in text
    assert "sd  " in text and "sd MRPC" not in text
    assert "whose study.json is not in" in said(f"--results={tmp_path / 'study' / 'mrpc'}")
    for name in SCORES:
        for seed, score in enumerate((80.0, 82.0)):
            arg = f"task=mrpc,row={name},seed={seed}"
            where = tmp_path / "same" / name / str(seed)
            write(where, "studies.against_lora", f"{arg},size=smoke", {"accuracy": score / 100})
    text = said(f"--results={tmp_path / 'same'}", "--size=smoke")
    assert "MRPC (against_lora), smoke runs, differences from LoRA." in text
    assert text.splitlines()[-1] == (
        "Differences do not vary, so nothing can be said of seeds: DoRA on MRPC; VeRA on MRPC"
    )


def test_studies_without_the_reference_are_named_beside_the_others(study, tmp_path):
    shutil.copytree(study / "study", tmp_path / "study")
    scores = 0.8 + np.random.default_rng(0).normal(0, 0.01, (2, 3, 2))  # methods, draws, seeds
    for (place, draw, seed), score in np.ndenumerate(scores):
        name, changes = ("dora", "vera")[place], {"data.train": 50, "data.draw": draw}
        where, arg = tmp_path / name / f"{draw}{seed}", f"task=mrpc,variant={name},seed={seed}"
        write(where, "glue", arg, {"accuracy": score}, changes=changes)
    *tables, line = said(f"--results={tmp_path}").splitlines()
    assert tables == said(f"--results={study}").splitlines()
    why = "glue has no method --reference=lora; nearest: "
    assert line.startswith(f"glue, minilm: {why}")
    ended = commands.run("experiments.power", f"--results={tmp_path}", "--table=glue")
    assert ended.returncode == 1 and ended.stderr.startswith(f"error: {why}")
    lines = said(f"--results={tmp_path}", "--table=glue", "--reference=dora").splitlines()
    sd = 100 * np.std(np.subtract(*scores.mean(2)), ddof=1)
    assert lines[-2].split()[:2] == ["VeRA", f"{sd:.2f}"] and lines[-2].split()[3] == "3"
    assert lines[-1].startswith("Runs share draws, so each draw of the training examples counts")


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--results=nowhere", "--seeds=3"), "--seeds would be ignored: it goes with --sd"),
        (("--sd=1", "--examples=5"), "--sd_examples and --examples go together"),
        (
            ("--results=STUDY", "--reference=dorra"),
            "has no method --reference=dorra; nearest: 'dora'",
        ),
    ],
)
def test_mistakes_end_with_one_line(study, flags, error):
    ended = commands.run(
        "experiments.power", *(each.replace("STUDY", str(study)) for each in flags)
    )
    assert ended.returncode == 1 and not ended.stdout
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert error in ended.stderr


def test_runs_that_are_not_as_registered_are_not_counted(study, tmp_path):
    """That is said, also where no others are there."""
    whole = tmp_path / "whole"
    shutil.copytree(study / "study", whole)
    arg = "task=rte,row=lora,seed=7"
    changes = {"study.registration": registration.read(whole).digest}
    write(whole / "run", "studies.against_lora", arg, {"accuracy": 0.5}, changes=changes)
    tables, plain = said(f"--results={whole}"), said(f"--results={study}")
    assert tables == plain + "1 run left out: not as the study registered them\n"

    shutil.rmtree(whole)
    shutil.copy(study / "study" / "study.json", tmp_path)
    arg = "task=rte,row=lora,seed=0"
    write(tmp_path / "run", "studies.against_lora", arg, {"accuracy": 0.5})
    for command in ("experiments.power", "experiments.report"):
        ended = commands.run(command, f"--results={tmp_path}")
        assert ended.returncode == 1 and "no run of size full has completed" in ended.stderr
        assert "left out" in ended.stderr and "registered" in ended.stderr
