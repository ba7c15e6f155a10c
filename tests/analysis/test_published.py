"""The papers' numbers: complete, without doubles, and consistent with their own averages."""

import collections
from collections.abc import Iterable, Iterator

import pytest

from experiments.analysis import published

CELLS = published.load()
OTHER = {"eval_loss", "bleu", "nist", "meteor", "cider", "gain_points", "steps_speedup"}
OTHER |= {"rouge_l_coco"}
BY_KEY = {(*cell.line, cell.task, cell.metric): cell for cell in CELLS}
TABLE_2 = ("LoRA", "Table 2")
# The authors cut these averages off instead of rounding them.
TRUNCATED = {
    ("AdaLoRA", "Table 1", "deberta_v3_base", "full"): 88.09625,
    ("AdaLoRA", "Table 1", "deberta_v3_base", "adapter_h_0.61m"): 87.935625,
    ("DoRA", "Table 1", "llama_13b", "parallel"): 81.475,
}


def averages(
    cells: Iterable[published.Published],
) -> Iterator[tuple[tuple[str, str, str, str], float, float]]:
    """For each row with a printed average: the row, the printed average, and that of its cells.

    A task with two metrics (MNLI matched and mismatched, QQP's accuracy and F1) counts once, with
    the mean of both.
    """
    printed: dict[tuple[str, str, str, str], float] = {}
    tasks: dict[tuple[str, str, str, str], dict[str, list[float]]] = {}
    for cell in cells:
        if cell.task == "average":
            printed[cell.line] = cell.value
        else:
            tasks.setdefault(cell.line, {}).setdefault(cell.task, []).append(cell.value)
    for line, value in printed.items():
        if line in tasks:
            means = [sum(values) / len(values) for values in tasks[line].values()]
            yield line, value, sum(means) / len(means)


def test_every_printed_average_is_that_of_its_cells():
    decimals = {"LoRA": 1, "VeRA": 1, "AdaLoRA": 2, "PiSSA": 2, "DoRA": 1}
    counted = collections.Counter()
    for line, printed, found in averages(CELLS):
        counted[line[0]] += 1
        if line in TRUNCATED:
            assert found == pytest.approx(TRUNCATED[line], abs=1e-9)
            unit = 10 ** decimals[line[0]]
            assert printed == int(found * unit) / unit != round(found, decimals[line[0]])
        else:
            assert abs(printed - found) <= 0.5 * 10 ** -decimals[line[0]] + 1e-9, line
    assert counted == {"LoRA": 14, "AdaLoRA": 12, "VeRA": 13, "PiSSA": 9, "DoRA": 19}


@pytest.mark.parametrize(
    ("table", "models", "rows", "cells"),
    [
        (("LoRA", "Table 2"), 3, 14, 14 * 9),
        (("LoRA", "Table 5"), 1, 7, 7 * 2),
        (("LoRA", "Table 6"), 1, 15, 15 * 2),
        (("LoRA", "Table 18"), 1, 11, 11 * 6),
        (("AdaLoRA", "Table 1"), 1, 12, 12 * 11),
        (("VeRA", "Table 2"), 2, 13, 13 * 7),
        (("QLoRA", "Table 3"), 6, 34, 34),
        (("PiSSA", "Table 3"), 1, 9, 9 * 9),
        (("LoRA", "Table 3"), 2, 12, 12 * 5),
        (("DoRA", "Table 1"), 5, 19, 19 * 9),
        (("PiSSA", "Table 2"), 3, 12, 12 * 5),
        (("QLoRA", "Table 4"), 5, 15, 12 * 2 + 3),
    ],
)
def test_tables_are_whole(table, models, rows, cells):
    own = [cell for cell in CELLS if cell.line[:2] == table]
    assert len({cell.model for cell in own}) == models
    assert len({cell.line for cell in own}) == rows
    assert len(own) == cells


@pytest.mark.parametrize(
    ("key", "value"),
    [
        # Copies on the web have 89.6 for the first.
        ((*TABLE_2, "deberta_v2_xxl", "lora", "rte", "accuracy"), 94.9),
        ((*TABLE_2, "roberta_base", "lora", "average", "mean"), 87.2),
        ((*TABLE_2, "roberta_large", "lora_dagger", "rte", "accuracy"), 85.2),
        (("AdaLoRA", "Table 1", "deberta_v3_base", "adalora_b576", "cola", "matthews"), 71.45),
        (("VeRA", "Table 2", "roberta_base", "vera", "rte", "accuracy"), 78.7),
        # The same cells, averaged in two ways: not to be compared.
        (("AdaLoRA", "Table 1", "deberta_v3_base", "adalora_b576", "average", "mean"), 89.31),
        (("PiSSA", "Table 3", "deberta_v3_base", "adalora", "average", "mean"), 89.46),
        # Copies have 2.59 here; and the README of its first version 72.86 here.
        (("LoRA", "Table 3", "gpt2_medium", "lora", "e2e", "cider"), 2.53),
        (("PiSSA", "Table 2", "mistral_7b", "pissa", "gsm8k", "accuracy"), 73.31),
        # The paper's, not that of the README's LoRA or of the paper's own Tables 6 and 7.
        (("DoRA", "Table 1", "llama_7b", "lora", "average", "mean"), 74.7),
        (("DoRA", "Table 1", "llama_7b", "dora", "average", "mean"), 78.4),
    ],
)
def test_cells_that_are_often_copied_wrongly(key, value):
    assert BY_KEY[key].value == value


def test_cells_are_distinct_and_have_what_tables_need():
    assert len(BY_KEY) == len(CELLS)
    known = {*published.PERCENT, *published.POINTS, *OTHER}
    for cell in CELLS:
        assert all((cell.paper, cell.table, cell.model, cell.row, cell.task, cell.source))
        assert cell.metric in known and (cell.seeds is None or cell.seeds > 0), cell
        assert cell.metric not in published.PERCENT or 0 <= cell.value <= 100, cell
    described = {(cell.line, cell.method, cell.runnable, cell.trained_parameters) for cell in CELLS}
    assert len(described) == len({cell.line for cell in CELLS})
    nf4 = [cell for cell in CELLS if cell.row == "lora_nf4_double" and cell.table == "Table 3"]
    assert nf4 and all(cell.model.startswith("t5") for cell in nf4)  # RoBERTa's cell is empty


def test_a_number_that_cannot_be_read_is_named_by_its_line(tmp_path):
    path = tmp_path / "published.csv"
    path.write_text(published.PATH.read_text(encoding="utf-8").replace(",94.9,", ",94.9x,", 1))
    with pytest.raises(ValueError, match=r"published\.csv, line \d+: could not convert"):
        published.load(path)
