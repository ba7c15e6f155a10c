"""Whole suites on tiny models, in this process or as the command."""

import json
import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from documents import ROOT

import variants
from benchmarks import models, turns
from benchmarks.cases import Case, Plan, smaller
from benchmarks.contenders import made, make
from benchmarks.suites import SUITES, growth, processes, training
from benchmarks.turns import in_turns
from experiments.planning.memory_formula import weights


@pytest.fixture
def in_this_process(monkeypatch, standard_promotion):
    """Suites make their contenders here; equal ones are made once."""
    done = {}

    def time_in_turns(group, turns):
        for each in group.contenders.values():
            if each not in done:
                work = make(each)
                done[each] = work, made.facts(work)

        def take(each, repeats):
            began = time.perf_counter()
            done[each][0].work()
            return [time.perf_counter() - began] * repeats

        own = group.contenders.items()
        takes = {name: lambda n, each=each: take(each, n) for name, each in own}
        seconds = in_turns(takes, turns, group.repeats, pause=0)
        return seconds, {name: dict(done[each][1]) for name, each in own}

    for module in (turns, training, growth):
        monkeypatch.setattr(module, "time_in_turns", time_in_turns)


def test_the_accelerators_suite_wants_an_accelerator():
    with pytest.raises(ValueError, match=r"^--suite=gpu: JAX finds no accelerator; --size=smoke"):
        list(SUITES["gpu"].run(Plan(against=("full",), turns=1)))


@pytest.mark.slow
def test_the_accelerators_suite_on_a_cpu(in_this_process):
    first, *_, last = SUITES["gpu"].run(Plan(against=("full",), turns=1, smoke=True))
    times = [each.what for each in first.ratios if "bytes" not in each.what]
    assert times == ["LoRA/full", "DoRA/LoRA", "QLoRA/LoRA"]
    assert list(last.contenders) == ["LoRA", "QLoRA"]  # 8B: full training does not fit
    case = first.contenders["LoRA"]["case"]
    assert (case["dtype"], case["remat"]) == ("bfloat16", True)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("cpu", None),
    ],
)
def test_the_share_of_a_device_s_peak(kind, peak):
    case = Case(model="tiny llama", rows=2, tokens=256)
    found = growth.rates(case, 1e12, 0.5, kind)
    assert found["tokens_per_second"] == 1024
    assert found.get("share_of_peak") == (None if peak is None else pytest.approx(2e12 / peak))


def test_the_shapes_of_llama():
    """About as many weights as the names say."""
    for name, billions in (("Llama 1B", 1.24), ("Llama 3B", 3.21), ("Llama 8B", 8.03)):
        numbers = sum(weights(models.config(Case(model=name))))
        assert numbers == pytest.approx(billions * 1e9, rel=0.02), name


@pytest.mark.slow
def test_curves(in_this_process):
    found = {each.name: each for each in SUITES["scale"].run(Plan(turns=1, smoke=True))}
    assert found.keys() == {axis.name for axis in growth.AXES}
    for name, measured in found.items():
        of = ["seconds", "growth_bytes"] if name == "examples" else None
        assert [curve.of for curve in measured.curves] == (
            of or ["seconds", "peak_bytes", "compile_seconds"]
        )
        assert all(math.isfinite(curve.allowed) for curve in measured.curves)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "against", "ratios"),
    [("compile", ("full", "hand"), 6), ("generate", ("merged",), 2), ("infer", ("merged",), 6)],
)
def test_suites_of_ours_alone(in_this_process, name, against, ratios):
    found = list(SUITES[name].run(Plan(against=against, turns=1, smoke=True)))
    assert sum(len(each.ratios) for each in found) == ratios
    for each in found:
        assert each.contenders and each.seconds.keys() == each.contenders.keys()
        assert all(seconds > 0 for turns in each.seconds.values() for seconds in turns)


@pytest.mark.slow
def test_many_adapters_on_one_base(in_this_process):
    """Mixed batches beside one adapter. Neither other slots nor other adapters compile anything."""
    measured = list(SUITES["bank"].run(Plan(against=("lora",), turns=1, smoke=True)))
    assert [ratio.what for ratio in measured[1].ratios] == ["64/one", "64, compilations"]
    texts = measured[2].facts
    assert texts["8 clients"]["tokens"] == 2 * texts["1 client"]["tokens"] == 2 * 4
    ratios = [ratio for each in measured for ratio in each.ratios]
    counts = [ratio for ratio in ratios if "compilations" in ratio.what]
    assert len(counts) == 14 and all(ratio.met and ratio.middle == 0 for ratio in counts)


def test_the_rows_of_a_mixed_batch_use_as_many_adapters_as_they_can():
    for rows, adapters in ((8, 8), (8, 64), (64, 8), (64, 64)):
        slots = models.slots_of(Case(work="mixed", rows=rows, adapters=adapters))
        assert len(set(slots)) == min(rows, adapters) and {*slots} <= {*range(1, adapters + 1)}


def test_every_method_has_a_pair_with_lora():
    groups = training.method_groups()
    assert {group.name for group in groups} == {*variants.names()} - {"lora"}
    assert all(list(each.contenders) == [each.name, "lora"] for each in groups)


@pytest.mark.slow
def test_methods_beside_lora(in_this_process):
    """With sizes and targets of their own, or starts from data."""
    cases = ("ia3", "eva", "adalora", "tokens")
    found = list(SUITES["methods"].run(Plan(("lora",), turns=1, smoke=True, cases=cases)))
    assert len(found) == len(cases)
    assert all([ratio.what for ratio in each.ratios] == [f"{each.name}/lora"] for each in found)


def test_a_method_that_cannot_be_timed_is_left_out(monkeypatch, capsys):
    def fails(group, turns):
        raise ValueError("ours cannot be timed: rank 8 exceeds 4")

    monkeypatch.setattr(turns, "time_in_turns", fails)
    with pytest.raises(ValueError, match="none of dora can be timed"):
        list(SUITES["methods"].run(Plan(("lora",), cases=("dora",))))
    assert capsys.readouterr().err == "without dora: ours cannot be timed: rank 8 exceeds 4\n"


def test_equal_memory_gives_other_methods_more_rows(monkeypatch):
    """Full training needs 1,000 bytes and 10 for a row; LoRA 200, on NF4 100, and 5 for a row."""

    def facts_of(contender):
        case = contender.case
        fixed = 1000 if case.method == "full" else 100 if case.storage == "nf4" else 200
        return {"peak_bytes": fixed + (10 if case.method == "full" else 5) * case.rows}

    monkeypatch.setattr(training, "facts_of", facts_of)
    group = training.fitted(training.equal(Case(rows=32)))
    rows = {name: each.case.rows for name, each in group.contenders.items()}
    assert rows == {"full": 32, "LoRA": 224, "NF4": 244}


def test_the_smoke_size_has_tiny_models_of_the_same_family():
    for group in (*training.train_groups(), *growth.gpu_groups()):
        for name, after in smaller(group).contenders.items():
            before = group.contenders[name].case
            assert after.case.model.startswith("tiny") and after.case.rows <= 2
            assert models.family(after.case) == models.family(before)
            assert after.case.method == before.method


def test_sweeps_have_spread_rates():
    for count in (2, 8):
        found = [float(text) for text in processes.rates(count)]
        np.testing.assert_allclose(found, np.geomspace(1e-4, 1e-3, count), rtol=5e-3)


@pytest.mark.slow
def test_the_command_writes_its_results(tmp_path):
    line = [sys.executable, "-m", "benchmarks", "--suite=infer", "--size=smoke"]
    line += ["--turns=2", "--cases=dora", f"--out={tmp_path}"]
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("devices: ")
    content = json.loads((tmp_path / "infer.json").read_text(encoding="utf-8"))
    (group,) = content["groups"]
    assert [len(each) for each in group["seconds"].values()] == [2, 2, 2]
    assert [each["what"] for each in group["ratios"]] == ["merged/base", "unmerged/base"]
    assert "merged/base" in done.stdout and content["smoke"]
