"""Papers' claims: effects from printed cells, and verdicts by a plain rule from gains here."""

import dataclasses

import pytest
from fake_gains import gain

from experiments.analysis import published, recorded_runs
from experiments.analysis.significance import Estimate
from experiments.reports import registered, study_blocks
from experiments.reports.paper_claims import CLAIMS, Claim, Compared, Printed
from experiments.reports.study_blocks import effect, verdict_on_claim
from experiments.reports.tables.config_tables import RESULTS, ROOT

CELLS = {(*cell.line, cell.task): cell for cell in published.load()}
SMALL = Claim(
    "DoRA",
    "Table 1",
    "2402.09353",
    "better",
    "better",
    (Printed("llama_7b", "dora", "lora"),),
    (Compared("against_lora_smollm2", "lora", "full"),),
)


@pytest.mark.parametrize(
    ("kind", "said", "interval", "expected"),
    [
        ("better", "better", (0.2, 3), "supported"),
        ("better", "worse", (-3, -0.2), "contradicted"),
        ("better", "equivalent", (-0.6, -0.1), "undecided"),
        ("better", "undecided", (0.1, 3), "undecided"),
        ("as good", "equivalent", (-1.1, 0.5), "supported"),
        ("as good", "better", (0.2, 3), "supported"),
        ("as good", "worse", (-0.9, -0.2), "supported"),
        ("as good", "worse", (-1.5, -0.2), "undecided"),
        ("as good", "worse", (-3, -1.2), "contradicted"),
        ("as good", "undecided", (-0.9, 0.9), "undecided"),
        ("within", "better", (0.2, 0.9), "supported"),
        ("within", "better", (0.2, 1.4), "undecided"),
        ("within", "better", (1.2, 3), "contradicted"),
        ("within", "better", (None, None), "undecided"),
        ("faster", "better", (0.2, 3), "not tested"),
    ],
)
def test_a_verdict_follows_from_the_study_s_test_and_the_interval(kind, said, interval, expected):
    made = dataclasses.replace(gain("x", said), over_tasks=Estimate(0.0, *interval, 0.01, 10))
    assert verdict_on_claim(dataclasses.replace(SMALL, kind=kind), made) == expected


def test_effects_are_those_of_the_printed_cells():
    """By hand, from the papers."""
    found = {}
    for claim in CLAIMS:
        key = (claim.paper, claim.table, claim.kind)
        own = [round(effect(claim, each, CELLS), 3) for each in claim.printed]
        found[key] = [*found.get(key, []), *own]
    assert found == {
        ("LoRA", "Table 6", "as good"): [-0.1],
        ("LoRA", "Table 16", "better"): [3.6],
        ("LoRA", "Table 16", "as good"): [-0.2],
        ("BitFit", "abstract", "as good"): [-1.2],
        ("AdaLoRA", "Table 1", "better"): [0.97],
        ("VeRA", "Table 2", "as good"): [-1.4, 0.0],
        ("rsLoRA", "author's blog", "better"): [0.125],
        ("DoRA", "Table 1", "better"): [3.7, 1.0, 2.1, 4.4],
        ("LoRA+", "Figure 5", "better"): [1.3],
        ("LoRA+", "Figure 7", "faster"): [2.0],
        ("PiSSA", "Table 3", "better"): [1.21],
        ("PiSSA", "abstract", "faster"): [],
        ("MiLoRA", "abstract", "better"): [],
        ("LoRA-GA", "abstract", "better"): [5.69, 11.52],
        ("LoRA-GA", "abstract", "faster"): [4.0],
        ("Learning Rate Matters", "Figure C2", "within"): [0.84],
    }


def test_a_row_has_the_study_s_gain_its_parameters_and_the_verdict():
    folder = ROOT / RESULTS / "against_lora_smollm2"
    (study,) = registered.found(folder, recorded_runs.find(folder))
    (full,) = (each.over_tasks for each in study.methods if each.label == "full fine-tuning")
    *_, row = (
        study_blocks.claims_block(ROOT / RESULTS, [SMALL]).partition("**The same")[0].split("| [")
    )
    cells = [each.strip() for each in row.split("|")]
    assert cells[2:5] == [
        "LLaMA-7B: +3.7",
        r"LoRA over full fine-tuning (against\_lora\_smollm2: 1 task, 10 seeds)",
        f"{-full.mean:+.2f} [{-full.high:+.2f}, {-full.low:+.2f}]",
    ]
    assert cells[5] == "55.1 times fewer; paper: not printed"  # 134,515,008 / 2,442,240
    assert cells[6] == "undecided"  # as the interval contains 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"compared": (Compared("against_lora_smollm2", "dorra"),)},
            "no method 'dorra' in .*'dora'",
        ),
        ({"compared": (Compared("against_lora_smolm", "dora"),)}, "no registered study in "),
        ({"printed": (Printed("llama_7b", "dorra"),)}, "no cell DoRA, Table 1, llama_7b, dorra, "),
    ],
)
def test_what_is_not_there_is_an_error_that_names_the_claim(change, said):
    with pytest.raises(ValueError, match=f"claim of DoRA, Table 1: {said}"):
        study_blocks.claims_block(ROOT / RESULTS, [dataclasses.replace(SMALL, **change)])
