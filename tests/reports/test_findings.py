"""What was found, in a sentence, in forest plots, and in a table, from gains and from pairs."""

import csv
import dataclasses
import io
import re

import numpy as np
import pytest
from fake_gains import GAINS, estimate, gain
from fake_records import planted
from report_study import LABELS, made, make_study, wrong

from experiments.analysis.gains import Gains
from experiments.analysis.significance import Estimate
from experiments.analysis.task_evidence import Evidence, Floor
from experiments.reports import claims, csv_lines, findings, sheets
from experiments.reports.document import Document
from experiments.reports.findings import sentence
from experiments.reports.plots import FEWER, forests, marked
from experiments.reports.study_blocks import verdict_block


def study(gains=GAINS, **how):
    found = findings.of_gains(gains, title="glue", reference="LoRA", margin=1.0, **how)
    return dataclasses.replace(found, reference_key="lora", metrics={"sst2": "accuracy"})


def test_the_sentence_has_the_answers_with_the_margin_and_n():
    assert sentence(study()) == (
        "B +2.50 [+2.00, +3.00]: better; C +0.60 [+0.10, +1.10]: equivalent within ±1 point; "
        "D +0.10 [-0.40, +0.60]: undecided; A -2.50 [-3.00, -2.00]: worse (points over LoRA over "
        "2 tasks (CoLA, SST-2), 20 seeds; for other seeds and the same test examples)."
    )
    small = dataclasses.replace(gain("x", "worse", mean=-0.9), equivalent=0.04)
    assert "X -0.40 [-0.90, +0.10]: worse by less than 1 point; A -2.50" in sentence(
        study([gain("a", "worse"), small])
    )
    assert sentence(study([])) == "Nothing could be compared with LoRA."


def test_the_sentence_on_many_methods_has_the_decided_ones_and_the_best_of_the_others():
    near = [gain(f"u{n}", "undecided", mean=n / 10) for n in range(7)]
    far = dataclasses.replace(gain("x", "worse"), over_tasks=estimate(-3.0, n=12))
    assert sentence(study([far, *near])) == (
        "X -3.00 [-3.50, -2.50]: worse; the best of the undecided: U6 +1.10 [+0.60, +1.60] (points "
        "over LoRA over 2 tasks (CoLA, SST-2), 12 to 20 seeds; for other seeds and the same test "
        "examples). Of 8 methods, none is better, 1 is worse and 7 are undecided."
    )
    many = [gain(f"m{n}", "worse", mean=-n) for n in range(9)]
    said = sentence(study([*many, gain("b", "better")]))
    assert said.startswith("B +2.50 [+2.00, +3.00]: better; M0") and "M5" not in said
    assert said.endswith(" Of 10 methods, 1 is better and 9 are worse.")
    untested = [dataclasses.replace(each, verdict="") for each in many]
    assert sentence(study(untested)).endswith(
        " Of 9 methods, none is better, none is worse and 9 could not be tested."
    )


def test_equal_differences_and_a_single_seed_have_no_interval_in_words():
    for n, why in ((20, "all differences are equal"), (1, "one seed")):
        one = dataclasses.replace(GAINS[0], over_tasks=Estimate(1.0, None, None, None, n))
        assert sentence(study([one])).startswith(f"A +1.00 (no interval: {why}): worse (points")


def test_the_sentence_names_controls_small_methods_and_tasks_that_show_nothing():
    floor = Floor("the untrained model", 90.0, estimate(-5.0))
    tasks = (
        Evidence("cola", "CoLA", "LoRA", 85.0, (floor,)),
        Evidence("sst2", "SST-2", "LoRA", 1, ()),
    )
    found = study(controls=["c"], shares={"a": 0.5, "b": 0.1, "d": 0.1})
    found = dataclasses.replace(
        found, evidence=tasks, without_blind=study(GAINS[:2]), idle=("A idles.",)
    )
    said = sentence(found)
    assert said.startswith("B +2.50 [+2.00, +3.00]: better; D +0.10 [-0.40, +0.60]: undecided; A ")
    assert "none is equivalent" not in said and "examples). As a control, C is equiv" in said
    assert said.endswith(
        " Of the worse, A trains fewer parameters than LoRA. A idles. On CoLA, LoRA ends below the "
        "untrained model (85.0 against 90.0). So this task shows nothing about adaptation. Without "
        "CoLA, 1 is better (B) and 1 is worse (A)."
    )
    (sheet,) = (each for each in found.sheets if each.title == "What each task can show")
    assert sheet.rows == [
        ["CoLA", "90.0", "85.0", "-5.00 [-5.50, -4.50]", "1", "nothing about adaptation"],
        ["SST-2", "–", "1.0", "–", "1", "not known"],
    ]
    rows = csv.DictReader(io.StringIO(csv_lines.lines([], [], [], [found])))
    (line,) = (row for row in rows if row["line"] == "floor")
    assert (line["task"], line["other"], line["difference"]) == (
        "cola",
        "the untrained model",
        "-5.0",
    )
    assert line["note"] == "nothing about adaptation" and (line["low"], line["n"]) == ("-5.5", "20")


def test_the_short_table_has_a_row_for_each_claim_and_where_it_holds():
    floor = Floor("the untrained model", 90.0, estimate(-5.0))
    found = study([*GAINS, gain("e", "undecided", mean=-1)], controls=["c"], shares={"a": 0.5})
    assert verdict_block(found) == (
        "**2 tasks (CoLA, SST-2), 20 seeds**\n\n"
        "| claim | verdict | points over LoRA, 95% interval | where |\n| --- | --- | --- | --- |\n"
        "| B is better than LoRA | shown | +2.50 [+2.00, +3.00] | 2 tasks |\n"
        "| A is worse than LoRA | shown | -2.50 [-3.00, -2.00] | 2 tasks |\n"
        "| C (a control) is within 1 point of LoRA | shown | +0.60 [+0.10, +1.10] | 2 tasks |\n"
        "| D and E: better, worse or within 1 point | undecided "
        "| +0.10 [-0.40, +0.60] to -0.50 [-1.00, +0.00] | 2 tasks |\n\n"
        "* Of the worse, A trains fewer parameters than LoRA."
    )
    rest = study([gain("a", "undecided"), gain("d", "better")])
    tasks = (Evidence("cola", "CoLA", "LoRA", 85.0, (floor,)),)
    found = dataclasses.replace(study(GAINS[::3]), evidence=tasks, without_blind=rest)
    rows = [line.split(" | ")[::3] for line in verdict_block(found).splitlines()[4:7]]
    assert rows == [
        ["| one of 2 methods is better than LoRA", "2 tasks; better without CoLA |"],
        ["| A is worse than LoRA", "2 tasks; undecided without CoLA |"],
        ["| D: better, worse or within 1 point", "2 tasks; better without CoLA |"],
    ]


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({"upper_below": 4.0}, "It holds."),
        ({"upper_below": 2.7}, "It does not hold for B (+2.50, upper bound +2.90)."),
        ({"equivalent": ("c",)}, "It holds."),
        ({"equivalent": ("c", "d")}, "It is undecided for D."),
        ({"equivalent": ("a",)}, "It does not hold for A (-2.50, upper bound -2.10)."),
        ({"equivalent": ("unknown",)}, "It is undecided for unknown."),
        ({"not_better": ("a",)}, "It holds."),
        ({"not_better": ("c",)}, "It is undecided for C."),
        ({"not_better": ("b",)}, "It does not hold for B (+2.50, upper bound +2.90)."),
        ({"worse": ("a",)}, "It holds."),
        ({"worse": ("a", "c")}, "It is undecided for C."),
        ({"worse": ("b",)}, "It does not hold for B (+2.50, upper bound +2.90)."),
        ({"first_repeats_below": 0.5, "sets": (1,)}, "It does not hold: 100% with sets of 1."),
        ({"first_repeats_below": 0.5, "sets": (3,)}, "It is undecided: too few methods or seeds"),
    ],
)
def test_a_claim_says_whether_it_holds(check, said):
    found = Gains("LoRA", "lora", 1.0, 0.05, ("cola", "sst2"), {}, tuple(GAINS))
    scores = np.arange(8.0).reshape(1, 2, 4)
    (line,) = claims.sentences(["So it is."], [check], found, (), scores)
    assert line.startswith(f"Claim, stated before the first run: So it is. {said}")
    assert list(claims.sentences(["So it is."], [], found, (), scores)) == [
        claims.stated("So it is.")
    ]


def test_an_unknown_check_of_a_claim_is_an_error():
    found = Gains("LoRA", "lora", 1.0, 0.05, (), {}, tuple(GAINS))
    with pytest.raises(ValueError, match=r"unknown check of a claim: 'equivalnt'.*equivalent"):
        list(claims.sentences(["So."], [{"equivalnt": ("a",)}], found, (), np.zeros((1, 2, 2))))


def test_forest_plots_are_of_all_tasks_first_with_the_best_method_on_top():
    pictures = forests(study())
    assert [each.title for each in pictures] == ["Mean over tasks", "CoLA", "SST-2"]
    (axes,) = pictures[0].figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["B", "C", "D", "A"]
    assert [line.get_xdata()[0] for line in axes.lines[1:]] == pytest.approx([2.5, 0.6, 0.1, -2.5])
    for each in pictures:
        assert "n = 20 seeds, paired by seed; a bar is the 95% interval" in each.caption
        assert "The grey band is the margin, ±1." in each.caption
    for each in forests(study(level=0.01)):
        assert "a bar is the 99% interval" in each.caption
    one, two = (each.figure.axes[0] for each in pictures[1:])
    assert one.get_xlim() == two.get_xlim()  # to be compared


def test_a_method_that_lacks_a_task_is_last_and_says_so_in_the_plot_over_tasks():
    few = gain("an awfully long name of a method", "undecided", mean=50.0)
    few = dataclasses.replace(few, by_task={"cola": few.by_task["cola"]})
    found = study([few, *GAINS])
    assert [each.label for each in found.methods] == ["B", "C", "D", "A", few.label]
    pictures = forests(found)
    names = [text.get_text() for text in pictures[0].figure.axes[0].get_yticklabels()]
    assert names[:4] == ["B", "C", "D", "A"]
    assert names[4].startswith("AN") and names[4].endswith("… (1 of 2 tasks)")
    assert FEWER in pictures[0].caption and FEWER not in forests(study())[0].caption
    names = [text.get_text() for text in pictures[1].figure.axes[0].get_yticklabels()]
    assert names[4].startswith("AN AWFULLY") and "tasks" not in names[4]


def test_a_question_has_a_figure_of_its_rows_in_their_order():
    asked = {
        "Rank": {"d": "4", "lora": "8", "a": "16", "unknown": "32"},
        "Dropout": {"lora": "none", "unknown": "10%"},
    }
    found = study()
    found = dataclasses.replace(found, questions=findings.questions(asked, found, "lora"))
    whole, rank, *tasks = forests(found)
    assert [each.title for each in (whole, rank, *tasks)] == [
        "Mean over tasks", "Rank", "CoLA", "SST-2",
    ]  # fmt: skip
    (axes,), (all_axes,) = rank.figure.axes, whole.figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["4", "8", "16"]
    assert [line.get_xdata()[0] for line in axes.lines[1:]] == pytest.approx([0.1, 0.0, -2.5])
    assert axes.get_xlim() == all_axes.get_xlim()


def test_the_table_of_gains_has_every_number():
    sheet, three = (sheets.gain_sheet(GAINS, "title", 0.05, tasks) for tasks in (2, 3))
    assert three.heads == (*sheet.heads[:-1], "such tasks", "seeds")
    assert three.rows[0][-3:] == ["0.75", "–", "20"]
    assert sheet.rows[0] == [
        "B", "better", "+2.50", "[+2.00, +3.00]", "<0.001", "0.900", "+2.90", "0.75", "20",
    ]  # fmt: skip
    assert [row[0] for row in sheet.rows] == ["B", "C", "D", "A"]
    lone = dataclasses.replace(
        GAINS[0],
        over_tasks=Estimate(1.0, None, None, None, 1),
        upper=None,
        detectable=None,
        new_task=estimate(1.0, 2.0),
    )
    (row,) = sheets.gain_sheet([lone], "title", 0.05, 3).rows
    assert row[3] == row[6] == row[7] == "–" and row[8] == "+1.00 [-1.00, +3.00]"


def test_a_study_s_findings_stand_in_place_of_its_pairs(tmp_path):
    contests = made(make_study(tmp_path))
    told = study(notes=["A task is missing."])
    document = Document(contests, resamples=100, studies=[told])
    text = document.render("markdown")
    assert text.splitlines()[2] == sentence(told)
    assert "| B | better | +2.50 |" in text
    assert "Difference from LoRA: A task is missing." in text.splitlines()  # no warning
    page = document.render("html")
    parts = (
        ">Difference from LoRA</h2>",
        "Mean over tasks</h3>",
        ">Gain over LoRA, all tasks together",
        '<ul class="notes"><li>A task is missing.</li></ul>',
    )
    places = [page.index(part) for part in parts]
    assert places == sorted(places) and '<ul class="warnings">' not in page[: places[-1]]
    lines = [
        line
        for line in csv.DictReader(io.StringIO(document.render("csv")))
        if line["line"] == "gain"
    ]
    assert len(lines) == 4 * 3
    first = lines[0]
    assert [first[key] for key in ("label", "other", "task", "verdict", "n")] == [
        "B", "lora", "all tasks", "better", "20",
    ]  # fmt: skip
    numbers = [float(first[key]) for key in ("difference", "low", "high", "p")]
    np.testing.assert_allclose(numbers, [2.5, 2.0, 3.0, 0.25])
    keys = ("p_holm", "p_equivalent", "upper", "detectable", "margin")
    np.testing.assert_allclose([float(first[key]) for key in keys], [4e-4, 0.9, 2.9, 0.75, 1.0])
    assert lines[1]["task"] != "all tasks" and not any(lines[1][key] for key in keys)
    assert [line["method"] for line in lines[::3]] == ["b", "c", "d", "a"]


def test_a_registered_study_has_no_verdicts_on_pairs(tmp_path):
    contests = made(make_study(tmp_path))
    other = dataclasses.replace(study(), title="x")
    for studies, judged in (([study()], False), ([study(), other], False), ([other], True)):
        document = Document(contests, resamples=100, studies=studies)
        text = document.render("markdown")
        assert ("| method | verdict (all pairs) | p (Holm, all pairs) |" in text) == judged
        assert (", in the family of all pairs, 1 contest**" in text) == judged
        assert (", each p is of one comparison alone**" in text) != judged
        assert ("On single tasks it has none" in text) != judged
        lines = list(csv.DictReader(io.StringIO(document.render("csv"))))
        tests = [line for line in lines if line["line"] == "test"]
        assert len(tests) == 3 * (3 if judged else 2)
        assert any(line["verdict"] or line["p_holm"] for line in tests) == judged


def test_contests_beside_a_registered_study_have_verdicts_of_their_own(tmp_path):
    """The family is of their pairs alone."""
    contests = made(make_study(tmp_path))
    other = [dataclasses.replace(each, table="other") for each in contests]
    document = Document([*contests, *other], resamples=100, studies=[study()])
    lines = list(csv.DictReader(io.StringIO(document.render("csv"))))
    tests = [line for line in lines if line["line"] == "test"]
    by_table = {table: [e for e in tests if e["table"] == table] for table in ("other", "glue")}
    assert not any(each["verdict"] or each["p_holm"] for each in by_table["glue"])
    alone = Document(other, resamples=100).render("csv")
    expected = [e for e in csv.DictReader(io.StringIO(alone)) if e["line"] == "test"]
    assert by_table["other"] == expected and expected
    text = document.render("markdown")
    assert "On single tasks it has none" in text
    assert text.count("| method | verdict (all pairs) |") == len(other)


def test_pairs_of_one_task_are_found_with_their_verdicts(tmp_path):
    contests = made(make_study(tmp_path))
    document = Document(contests, resamples=1000)
    (found,) = document.findings
    assert (found.reference, found.unit, found.margin) == ("LoRA", "points", None)
    assert [(each.label, each.verdict) for each in found.methods] == [
        ("DoRA", "undecided"),
        ("VeRA", "worse"),
    ]
    dora, vera = (each.by_task["SST-2"] for each in found.methods)
    assert vera.mean == pytest.approx(-24.0) and vera.n == 3
    assert sentence(found).startswith(
        f"DoRA {dora.mean:+.2f} [{dora.low:+.2f}, {dora.high:+.2f}]: undecided; "
        f"VeRA -24.00 [{vera.low:+.2f}, {vera.high:+.2f}]: worse (points over LoRA on SST-2, "
        "3 seeds). Undecided is not equal: without a margin"
    )
    small = Document(contests, resamples=100, size="smoke")
    said = "These are smoke runs, which say nothing about methods. DoRA "
    for form in ("rich", "markdown", "latex", "html"):
        assert said in " ".join(small.render(form).split()), form
    lines = csv.DictReader(io.StringIO(small.render("csv")))
    assert {line["size"] for line in lines} == {"smoke"}


def test_tables_and_pictures_of_smoke_runs_are_marked(tmp_path):
    contests = made(make_study(tmp_path))
    titles = {"latex": r"\\caption{(.*)}", "markdown": r"(?m)^\*\*(.*)\*\*$"}
    titles["html"] = "(?:<h3>|<figcaption>)(.*?)<"
    for size, mark in {"full": "", "smoke": "smoke runs: "}.items():
        document = Document(contests, resamples=100, size=size, studies=[study()])
        for form, pattern in titles.items():
            found = re.findall(pattern, document.render(form))
            begin = [each.startswith("smoke runs: ") for each in found]
            assert len(found) >= 3 and set(begin) == {bool(mark)}, (form, found)
    (plain, *_), drawn = forests(study()), forests(study())
    assert "smoke runs" not in [text.get_text() for text in plain.figure.texts]
    for each in drawn:
        texts = marked(each, "smoke").figure.texts
        assert "smoke runs" in [text.get_text() for text in texts]


def test_pairs_of_several_tasks_are_counted(tmp_path):
    for task in ("sst2", "rte"):
        for method, share in {"lora": 0.2, "vera": 0.45}.items():
            for seed in range(4):
                folder = tmp_path / task / method / str(seed)
                planted(folder, method, seed, LABELS, wrong(share, (seed, 1)), task=task)
    (found,) = Document(made(tmp_path), resamples=1000).findings
    answers, said = sentence(found).split(" (points). ")
    assert [each.split(" [")[0] for each in answers.split("; ")] == [
        f"VeRA on {task} -25.00" for task in ("RTE", "SST-2")
    ]
    assert said.startswith(
        "In 2 comparisons with LoRA (1 method on 2 tasks), with 4 seeds, 0 found the other method "
        "better, 2 found it worse and 0 could not tell the two apart."
    )
    assert [each.title for each in forests(found)] == ["RTE", "SST-2"]
