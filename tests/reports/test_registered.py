"""A registered study's report: planted gains over all tasks, and what was not as registered."""

import dataclasses
import importlib
import math
import re
import shutil

import numpy as np
import pytest
from fake_records import write

from experiments import report, tune
from experiments.analysis import recorded_runs
from experiments.reports import csv_lines, registered, study_blocks
from experiments.reports.document import (
    Document,
    names_of_parts as names_of_parts,
    with_names_of_parts as with_names_of_parts,
)
from experiments.reports.findings import sentence
from experiments.studies import registration
from experiments.studies.protocol import Protocol
from lora_jax.files import marked_documents
from lora_jax.table import Table

MODULE = importlib.import_module("configs.studies.against_lora")
TASKS, SEEDS, TUNING = ("rte", "sst2"), range(6), 100
EFFECTS = {"lora": 0.0, "dora": 3.0, "vera": -4.0, "pissa": 0.0}
PROTOCOL = Protocol.of(
    {
        **MODULE.STUDY,
        "rows": list(EFFECTS),
        "columns": list(TASKS),
        "rates": {"per_decade": 2, "around": 0, "most_more": 0},
        "tuning": {"held_out": 400, "seeds": [TUNING]},
        "seeds": list(SEEDS),
        "claims": ["DoRA is better."],
    },
    "STUDY",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    plant(folder, PROTOCOL)
    return folder


def plant(folder, protocol):
    """Scores with a noise of 0.1 points, and one of 3 that all methods of a seed share."""
    rng, tasks = np.random.default_rng(0), protocol.columns
    cells = tune.make_cells(MODULE, protocol, "size=smoke")
    planned = {task: {cell.row: cell.planned for cell in row} for task, row in cells.items()}
    budget = registration.Budget("accuracy", examples=0, epochs=1, max_steps=2, batch_size=4)
    budgets = dict.fromkeys(tasks, budget)
    digest = registration.register(folder, "against_lora", protocol, planned, budgets).digest
    for task in tasks:
        shared = {seed: 3 * rng.normal() for seed in SEEDS}
        for row, effect in EFFECTS.items():
            rate = planned[task][row].middle
            for seed in (TUNING, *SEEDS):
                tuning = seed == TUNING
                score = 80 if tuning else 80 + shared[seed] + effect + 0.1 * rng.normal()
                write(
                    folder / task / ("tuning" if tuning else "runs") / row / str(seed),
                    "studies.against_lora",
                    f"task={task},row={row},seed={seed},size=smoke",
                    {"accuracy": score / 100},
                    changes={
                        "optimizer.learning_rate": rate,
                        "data.validation": 400 if tuning else 0,
                        "study.registration": digest,
                    },
                )


def found(study, change=lambda runs: runs):
    return registered.found(study, change(recorded_runs.find(study)))


def test_planted_gains(study):
    (one,) = found(study)
    assert {each.label: each.verdict for each in one.methods} == {
        "DoRA": "better",
        "PiSSA": "equivalent",
        "VeRA": "worse",
    }
    for each in one.methods:
        planted = EFFECTS[each.label.lower()]
        assert each.mean == pytest.approx(planted, abs=0.2)
        assert each.over_tasks.low - 0.05 < planted < each.over_tasks.high + 0.05
    assert (one.reference, one.margin) == ("LoRA", 1.0)
    assert "over 2 tasks" in sentence(one)
    said = " ".join(one.notes)
    assert "All runs are as registered" in said and "Still missing" not in said
    assert "study.json" in one.notes[1]  # what the history says of it
    assert "Each method begins with 1 learning rate. With fewer than 5, a better one may" in said
    assert "Claim, stated before the first run: DoRA is better." in said
    pairs = math.comb(6, 2), math.comb(6, 3) // 2
    shares = f"100% ({pairs[0]} pairs) with sets of 1 seed and 100% ({pairs[1]} pairs) with sets"
    assert f"in {shares} of 3 seeds. By chance, they would in 25%." in said
    assert "the first place repeats in 80% or more from 1 seed on" in said
    (bound,) = (each for each in one.notes if each.startswith("The largest"))
    assert "of DoRA. Of 3 bounds, 1 is the margin or more: DoRA." in bound
    assert one.caveat == ""
    ratio = 0.1**2 / (0.1**2 + 3**2)
    (variance,) = (each for each in one.notes if each.startswith("The variance"))
    assert float(variance.split(" is ")[1].split()[0]) == pytest.approx(ratio, abs=0.02)


def test_all_pairs_are_the_family_of_a_study_that_registered_them(study):
    _, (kept,), _ = report.compared(study, recorded_runs.find(study), None, "smoke", (), [])
    plain, asked = registered.of_study(kept), registered.of_study(kept, pairs=True)
    assert asked.methods == plain.methods and sentence(asked) == sentence(plain)
    assert "compares all pairs of methods, which was not registered." in " ".join(asked.notes)
    protocol = dataclasses.replace(PROTOCOL, compare="pairs")
    other = dataclasses.replace(kept.registered, protocol=protocol)
    own = registered.of_study(dataclasses.replace(kept, registered=other))
    assert own.pairs == asked.pairs and "not registered" not in " ".join(own.notes)
    said = "Of 6 pairs of methods, 5 differ, 1 is equivalent and 0 are undecided."
    assert sentence(own) == f"{sentence(plain)} {said}"
    dora, pissa, _ = (each.gain for each in own.methods)  # 2nd and last of the 6 p of a difference
    assert dora.adjusted < pissa.adjusted == pissa.over_tasks.p
    assert plain.pairs == () and plain.methods[1].gain.adjusted == pissa.over_tasks.p
    for found, title in ((asked, "points; not registered"), (own, "points")):
        made = Document([], studies=[found]).render("markdown")
        assert f"Gain of one method over another, all tasks together, {title}**\n" in made
        (row,) = (line for line in made.splitlines() if line.startswith("| VeRA over DoRA |"))
        assert row.split(" | ")[1] == "worse"
        assert float(row.split(" | ")[2]) == pytest.approx(EFFECTS["vera"] - 3, abs=0.2)
    lines = csv_lines.lines([], [], [], [asked]).splitlines()
    assert len([each for each in lines if each.startswith("pair,")]) == 6 * (1 + len(TASKS))


def test_a_page_has_each_part_of_a_study_by_its_own_rules(tmp_path):
    for name, task in (("64", "rte"), ("8", "sst2")):
        plant(tmp_path / name, dataclasses.replace(PROTOCOL, columns=(task,)))
    runs = recorded_runs.find(tmp_path)
    made, kept, notes = report.compared(tmp_path, runs, None, "smoke", (), [])
    names = names_of_parts(kept)
    assert [*names.values()] == ["against_lora/8", "against_lora/64"] and not notes
    assert [*names_of_parts(kept[:1]).values()] == ["against_lora"]
    contests = with_names_of_parts(made, names)
    assert [(each.table, each.task) for each in contests] == [
        ("against_lora/8", "sst2"), ("against_lora/64", "rte"),
    ]  # fmt: skip
    by_digest = {each.registered.digest: registered.of_study(each) for each in kept}
    told = [dataclasses.replace(by_digest[each], title=name) for each, name in names.items()]
    alone = [found(tmp_path / name)[0] for name in ("8", "64")]
    assert [each.methods for each in told] == [each.methods for each in alone]
    document = Document(contests, title="Parts", resamples=100, size="smoke", studies=told)
    assert not document.family
    lines = document.render("markdown").splitlines()
    assert lines[0] == "# Comparison of methods: Parts"
    said = "These are smoke runs, which say nothing about methods."
    assert [line for line in lines if said in line] == [
        f"{each.title}: {said} {sentence(each)}".replace("_", "\\_") for each in told
    ]
    page = document.render("html")
    assert "<title>Parts</title>" in page and "<h1>Parts</h1>" in page
    about = "MiniLM (all-MiniLM-L6-v2), 1 task, 6 seeds</p>"
    for name in names.values():
        assert f'<p class="about">{name}: {about}' in page


def test_runs_that_are_missing_or_not_as_registered_are_said(study):
    def changed(runs):
        runs = [run for run in runs if run.record.seed != 5 or run.study.row != "pissa"]
        place = next(n for n, run in enumerate(runs) if run.record.seed == 3)
        plain = runs[place].record.config
        plain = {**plain, "study": {**plain["study"], "registration": "other"}}
        record = dataclasses.replace(runs[place].record, config=plain)
        runs[place] = dataclasses.replace(runs[place], record=record)
        return runs

    (one,) = found(study, changed)
    assert "1 run is not as registered and left out:" in one.notes[0]
    assert sentence(one).startswith(
        "Incomplete, verdicts may change: 45 of 48 scored runs count so far. "
        "1 run is not as registered and left out. DoRA +"
    )
    assert "does not carry the digest of the registration" in one.notes[0]
    assert "pissa on rte: 1 of 6 seeds" in one.notes[2]


def test_runs_that_depart_decide_nothing(study):
    """DoRA loses by 40 points with a seed that was not registered, and LoRA with another rate."""

    def changed(runs):
        (own,) = (r for r in runs if r.place[1:] == ("dora", "rte") and r.record.seed == 5)
        config = {**own.record.config, "seed": 9}
        config["data"] = {**config["data"], "draw": 9}
        scores = {"accuracy": 0.4}
        record = dataclasses.replace(own.record, seed=9, config=config, metrics_last=scores)
        return [*runs, dataclasses.replace(own, record=record)]

    (one,), (plain,) = found(study, changed), found(study)
    assert "seed 9 is not registered" in one.notes[0] and "1 run is not as registered" in one.caveat
    assert one.methods == plain.methods
    runs = changed(recorded_runs.find(study))
    made, _, notes = report.compared(study, runs, None, "smoke", (), [])
    scored = [run for contest in made for method in contest.methods for run in method.runs]
    assert {run.record.seed for run in scored} == set(SEEDS) and not notes


def test_runs_without_their_registration_are_said(study):
    _, kept, notes = report.compared(
        study, recorded_runs.find(study / "rte"), None, "smoke", (), []
    )
    assert len(kept) == 1 and not notes
    folder = study / "rte"
    made, kept, notes = report.compared(folder, recorded_runs.find(folder), None, "smoke", (), [])
    assert not kept and "whose study.json is not in --results or below" in notes[0]
    document = Document(made, resamples=100)
    assert sentence(document.findings[0]).startswith("These are not the verdicts of the study")


def test_a_family_is_as_large_as_registered(study):
    """Tasks and methods that are missing are no smaller study."""

    def one_task(runs):
        return [run for run in runs if run.study.column == "rte"]

    (part,) = found(study, one_task)
    assert {each.verdict for each in part.methods} == {"undecided"}

    def two_methods(runs):
        known = "lora", "dora"
        return [run for run in runs if run.record.seed == TUNING or run.study.row in known]

    (part,) = found(study, two_methods)
    (dora,) = part.methods
    assert dora.gain.adjusted == pytest.approx(3 * dora.over_tasks.p)

    def one_seed_of_others(runs):
        rest = {run.study.row for run in runs} - {"lora", "dora"}
        return [run for run in runs if run.study.row not in rest or run.record.seed in (TUNING, 0)]

    (part,) = found(study, one_seed_of_others)
    assert [each.gain.adjusted for each in part.methods[1:]] == [None, None]
    assert part.methods[0].gain.adjusted == pytest.approx(3 * part.methods[0].over_tasks.p)


def test_a_study_without_its_reference_compares_nothing_and_says_so(study):
    def without(runs):
        return [run for run in runs if run.study.row != "lora"]

    (one,) = found(study, without)
    assert one.methods == () and sentence(one).endswith("Nothing could be compared with LoRA.")
    assert "lora on rte: 1 of its tuning runs" in one.notes[2]


def test_runs_that_chose_a_rate_are_no_result(study):
    (one,) = found(study, lambda runs: [run for run in runs if run.record.seed == TUNING])
    assert one.methods == () and "0 of 48 scored runs" in one.caveat


def diverged(study, row, number, task="", left=None):
    """The study's runs, where those of a method with these seeds diverged.

    Args:
      number: a seed, or several.
      left: their last metrics; by default they left no score.
    """
    runs, numbers = [], (number,) if isinstance(number, int) else number
    for run in recorded_runs.find(study):
        if run.study.row == row and run.record.seed in numbers and task in run.study.column:
            lost = {"status": "diverged", "metrics_last": left or {}, "metrics_best": {}}
            run = dataclasses.replace(run, record=dataclasses.replace(run.record, **lost))
        runs.append(run)
    return runs


def test_a_method_that_lacks_a_task_has_no_bound_and_it_is_said(study):
    """DoRA, the best one, diverged once on a task and left no score."""
    runs = diverged(study, "dora", 3, "rte")
    (one,) = registered.found(study, runs)
    (bound,) = (each for each in one.notes if each.startswith("The largest"))
    assert "of PiSSA. Of 2 bounds, 0 are the margin or more." in bound
    assert (
        "1 method of 3 has no upper bound over all tasks: DoRA. Nothing is shown about the bounds "
        "of all methods."
    ) in one.notes
    assert [row[0] for row in one.sheet.rows] == ["PiSSA", "VeRA", "DoRA (1 of 2 tasks)"]
    lines = csv_lines.lines([], [], [], [one]).splitlines()
    whole = [line.split(",")[3] for line in lines if " tasks" in line]
    assert sorted(whole) == ["1 of 2 tasks", "all tasks", "all tasks"]


def test_a_task_without_the_reference_is_named_at_the_top(study):
    """As the verdicts are those of the other tasks alone."""
    (one,) = registered.found(study, diverged(study, "lora", 3, "rte"))
    why = "LoRA: seed 3 diverged and left no score, so it has no number"
    assert one.caveat == f"Left out, though registered: RTE ({why}). "
    assert sentence(one).startswith(one.caveat) and one.tasks == ["SST-2"]
    (one,) = registered.found(study, diverged(study, "lora", 3))
    assert one.caveat == f"Left out, though registered: RTE ({why}), SST-2 ({why}). "

    def without_a_task(runs):  # where no rate trained, there is no scored run
        return [run for run in runs if run.study.column != "rte" or run.record.seed == TUNING]

    lost = [run for row in EFFECTS for run in diverged(study, row, TUNING, "rte")]
    tuning = {run.folder: run for run in lost if run.record.status == "diverged"}
    runs = [tuning.get(run.folder, run) for run in recorded_runs.find(study)]
    (one,) = registered.found(study, without_a_task(runs))
    assert one.caveat == "Left out, though registered: RTE (no scored run). "
    (one,) = found(study, without_a_task)
    assert one.caveat.startswith("Incomplete") and "Left out" not in one.caveat


@pytest.mark.parametrize("seeds", [SEEDS[1:], SEEDS])
def test_a_method_whose_runs_all_diverge_is_worse(study, seeds):
    """As with one run to the end: a run that diverged counts with its last score."""
    (one,) = registered.found(study, diverged(study, "dora", seeds, "rte", {"accuracy": 0.5}))
    (dora,) = (each for each in one.methods if each.label == "DoRA")
    assert (dora.verdict, set(dora.by_task)) == ("worse", {"RTE", "SST-2"})
    assert any("diverged" in note and "last score" in note for note in dora.gain.notes)


def test_what_an_earlier_registration_lacks_is_said(study):
    _, (kept,), _ = report.compared(study, recorded_runs.find(study), None, "smoke", (), [])
    assert "earlier version" not in " ".join(registered.of_study(kept).notes)
    usual = dataclasses.replace(PROTOCOL, rates=Protocol.of(MODULE.STUDY, "STUDY").rates)
    earlier = dataclasses.replace(kept.registered, budgets={}, protocol=usual)
    told = registered.of_study(dataclasses.replace(kept, registered=earlier))
    assert "earlier version, which says nothing of metrics and families of tests" in told.notes[2]
    assert "Budgets it fixes" in told.notes[2]
    assert not any("learning rate" in note for note in told.notes)  # 5 rates


def test_a_method_that_no_rate_trains_is_compared_and_undecided(study):
    runs = diverged(study, "pissa", TUNING)
    runs = [run for run in runs if run.study.row != "pissa" or run.record.seed == TUNING]
    (one,) = registered.found(study, runs)
    assert one.caveat == "" and one.absent == ("PiSSA",)
    assert sentence(one).startswith("DoRA +2.99 [+2.87, +3.11]: better; VeRA ")
    assert sentence(one).endswith(
        " Of 3 methods, 1 is better, 1 is worse and 1 has no number (PiSSA)."
    )
    said = "No learning rate trained to the end with each seed: pissa on rte; pissa on sst2."
    assert said in one.notes


def test_tables_of_tasks_have_the_study_s_reference(study):
    runs = recorded_runs.find(study)
    made, kept, _ = report.compared(study, runs, None, "smoke", (), [])
    told = dataclasses.replace(registered.of_study(*kept), reference_key="dora")
    document = Document(made, resamples=100, studies=[told])
    assert {own.key for own in document.references} == {"dora"}


def test_a_document_s_block_has_the_verdict_and_the_gains(study, tmp_path):
    (one,) = found(study)
    row = f"| DoRA | better | {one.methods[0].mean:+.2f} |"
    made = study_blocks.study_block(study, "smoke")
    assert made.startswith(sentence(one)) and f"\n{row}" in made
    for name in ("8", "16"):
        shutil.copytree(study, tmp_path / name)
    made = study_blocks.study_block(tmp_path, "smoke")
    assert made.index(f"8: {sentence(one)}") < made.index(f"16: {sentence(one)}")
    assert made.index(f"\n| 8 {row}") < made.index(f"\n| 16 {row}") and made.count("---\n") < 2


def test_studies_with_other_columns_have_tables_of_their_own():
    one, two = Table(("method", "p"), [["a", "1"]], "gain"), Table(("method",), [["b"]], "gain")
    (both,) = study_blocks.together({"8": one, "16": one})
    assert both == Table(("study", "method", "p"), [["8", "a", "1"], ["16", "a", "1"]], "gain")
    apart = study_blocks.together({"8": one, "16": two})
    assert [each.title for each in apart] == ["8: gain", "16: gain"]
    assert [each.rows for each in apart] == [one.rows, two.rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        path
        for path in marked_documents.files()
        if re.search("<!-- (study|verdicts): ", path.read_text(encoding="utf-8"))
    ],
    ids=lambda path: path.stem,
)
def test_documents_have_the_blocks_of_committed_studies(path):
    text = path.read_text(encoding="utf-8")
    assert study_blocks.fill(text) == text


def test_a_block_of_what_is_no_registered_study():
    with pytest.raises(ValueError, match="has no registered study"):
        study_blocks.fill("<!-- study: bench -->\n<!-- /study -->\n")
