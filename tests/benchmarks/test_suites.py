"""Whole suites on tiny models, in this process or as the command."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time

import own_method
import pytest

import variants
from experiments.benchmarks import models, plan, theory
from experiments.benchmarks.cases import Case
from experiments.benchmarks.contenders import ours_data, ours_mixed, process
from experiments.benchmarks.contenders.process import make
from experiments.benchmarks.plan import Plan
from experiments.benchmarks.suites import bank, gpu, memory, scale, start, suite_of
from experiments.benchmarks.turns import in_turns
from experiments.tables.config_tables import ROOT


@pytest.fixture
def in_this_process(monkeypatch, standard_promotion):
    """Suites make their contenders here; equal ones are made once."""
    made, known = {}, {}

    def time_in_turns(group, turns):
        for each in group.contenders.values():
            if each not in made:
                made[each] = make(each)
                known[each] = process.facts(made[each])

        def take(each, repeats):
            began = time.perf_counter()
            made[each].work()
            return [time.perf_counter() - began] * repeats

        own = group.contenders.items()
        takes = {name: lambda n, each=each: take(each, n) for name, each in own}
        seconds = in_turns(takes, turns, group.repeats, pause=0)
        return seconds, {name: dict(known[each]) for name, each in own}

    for module in (gpu, plan, scale):
        monkeypatch.setattr(module, "time_in_turns", time_in_turns)


def test_the_accelerators_suite_wants_an_accelerator():
    with pytest.raises(ValueError, match=r"^--suite=gpu: JAX finds no accelerator; --size=smoke"):
        list(gpu.run(Plan(against=("full",), turns=1)))


@pytest.mark.slow
def test_the_accelerators_suite_on_a_cpu(in_this_process):
    first, *_, last = gpu.run(Plan(against=("full",), turns=2, smoke=True))
    assert [each.what for each in first.ratios if "bytes" not in each.what] == [
        "LoRA/full",
        "DoRA/LoRA",
        "QLoRA/LoRA",
    ]
    assert list(last.contenders) == ["LoRA", "QLoRA"]  # 8B: full training does not fit
    case = first.contenders["LoRA"]["case"]
    assert (case["dtype"], case["remat"]) == ("bfloat16", True)
    for name, facts in first.facts.items():
        middle = sum(first.seconds[name]) / 2
        assert facts["tokens_per_second"] == pytest.approx(case["rows"] * case["tokens"] / middle)
    sizes = {name: facts["peak_bytes"] for name, facts in first.facts.items()}
    assert sizes["LoRA"] < sizes["DoRA"]  # its norms, and their moments


def test_the_share_of_a_known_peak():
    case = Case(model="tiny llama", rows=2, tokens=256)
    found = gpu.rates(case, 0.5, "NVIDIA H100 80GB HBM3")
    assert found["tokens_per_second"] == 1024
    useful = theory.step_flops(case, recomputed=False)
    assert found["mfu"] == pytest.approx(useful / 0.5 / 989e12)
    again = dataclasses.replace(case, remat=True)
    assert theory.step_flops(again, recomputed=False) == useful < theory.step_flops(case)
    assert theory.step_flops(case) < theory.step_flops(again)
    assert "mfu" not in gpu.rates(case, 0.5, "cpu")


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GH200 480GB", 989e12),
    ],
)
def test_a_devices_kind_is_read_by_whole_words(kind, peak):
    case = Case(model="tiny llama", rows=2, tokens=256)
    useful = theory.step_flops(case, recomputed=False)
    found = gpu.rates(case, 1.0, kind)
    assert found.get("mfu") == (None if peak is None else pytest.approx(useful / peak))


def test_the_shapes_of_llama():
    """About as many weights as the names say."""
    for name, billions in (("Llama 1B", 1.24), ("Llama 3B", 3.21), ("Llama 8B", 8.03)):
        case = Case(model=name, rows=1, tokens=1, method="full")
        multiplied = theory.step_flops(case, recomputed=False) / 6
        tied = models.content(case).get("tie_word_embeddings", False)
        table = 0 if tied else 128256 * models.content(case)["hidden_size"]  # only looked up
        assert multiplied + table == pytest.approx(billions * 1e9, rel=0.02), name


@pytest.mark.parametrize("axis", scale.AXES, ids=lambda axis: axis.name)
def test_what_grows_on_an_axis(axis):
    group = scale.group(axis)
    cases = [each.case for each in group.contenders.values()]
    assert all(getattr(case, axis.field) == value for case, value in zip(cases, axis.values))  # noqa: B905
    at = [float(name) for name in group.contenders]
    assert at == sorted(at) and len(at) == len(axis.values)
    if axis.name != "examples":
        for of in (theory.step_flops, theory.step_bytes):
            grows = [of(case) for case in cases]
            assert grows == sorted(grows) and grows[-1] > grows[0]


@pytest.mark.slow
def test_curves(in_this_process):
    found = {each.name: each for each in scale.run(Plan(turns=1, smoke=True))}
    assert found.keys() == {axis.name for axis in scale.AXES}
    for name, measured in found.items():
        of = ["seconds", "growth_bytes"] if name == "examples" else None
        of = of or ["seconds", "peak_bytes", "compile_seconds"]
        assert [curve.of for curve in measured.curves] == of
        assert all(math.isfinite(curve.allowed) for curve in measured.curves)
    (memory_of_tokens,) = (each for each in found["tokens"].curves if each.of == "peak_bytes")
    assert memory_of_tokens.values[1] > memory_of_tokens.values[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "against", "ratios"),
    [("compile", ("full", "hand"), 6), ("generate", ("merged",), 2), ("infer", ("merged",), 6)],
)
def test_suites_of_ours_alone(in_this_process, name, against, ratios):
    found = list(suite_of(name).run(Plan(against=against, turns=1, smoke=True)))
    assert sum(len(each.ratios) for each in found) == ratios
    for each in found:
        assert each.contenders and each.seconds.keys() == each.contenders.keys()
        assert all(seconds > 0 for turns in each.seconds.values() for seconds in turns)


@pytest.mark.slow
def test_many_adapters_on_one_base(in_this_process):
    """Mixed batches beside one adapter. Neither other slots nor other adapters compile anything."""
    first, second, texts, put = bank.run(Plan(against=("lora",), turns=1, smoke=True))
    assert [ratio.what for ratio in (*first.ratios, *second.ratios)] == [
        "8/one",
        "64/one",
        "8, compilations",
        "64, compilations",
        "64/one",
        "64, compilations",
    ]
    assert texts.facts["8 clients"]["tokens"] == 2 * texts.facts["1 client"]["tokens"] == 2 * 4
    assert put.seconds.keys() == {"from memory", "from a file, r=32"}
    measured = first, second, texts, put
    found = {ratio.what: ratio for each in measured for ratio in each.ratios}
    assert found["from a file, r=32, milliseconds"].middle > 0
    counts = [ratio for what, ratio in found.items() if "compilations" in what]
    assert len(counts) == 7 and all(ratio.met and ratio.middle == 0 for ratio in counts)


def test_the_rows_of_a_mixed_batch_use_as_many_adapters_as_they_can():
    for rows, adapters in ((8, 8), (8, 64), (64, 8), (64, 64)):
        slots = ours_mixed.slots_of(Case(work="mixed", rows=rows, adapters=adapters))
        assert len(set(slots)) == min(rows, adapters) and {*slots} <= {*range(1, adapters + 1)}


def test_every_method_has_a_pair_with_lora(tmp_path):
    with own_method.installed(tmp_path):
        groups = suite_of("methods").groups([own_method.NAME])
        with pytest.raises(ValueError, match="PYTHONPATH has no module 'my_package'"):
            suite_of("methods").groups(["my_package.columns"])
    names = {group.name for group in groups}
    assert names == {*variants.names(), own_method.NAME} - {"lora"}
    assert all(list(each.contenders) == [each.name, "lora"] for each in groups)


@pytest.mark.slow
def test_methods_beside_lora(in_this_process):
    """With sizes and targets of their own, or starts from data."""
    cases = ("ia3", "eva", "lora_ga", "adalora", "tokens")
    found = list(suite_of("methods").run(Plan(("lora",), turns=1, smoke=True, cases=cases)))
    assert len(found) == len(cases)
    for each in found:
        assert [ratio.what for ratio in each.ratios] == [f"{each.name}/lora"]
        assert each.ratios[0].middle > 0


def test_a_method_that_cannot_be_timed_is_left_out(monkeypatch, capsys):
    def fails(group, turns):
        raise ValueError("ours cannot be timed: rank 8 exceeds 4")

    monkeypatch.setattr(plan, "time_in_turns", fails)
    with pytest.raises(ValueError, match="none of dora can be timed"):
        list(suite_of("methods").run(Plan(("lora",), cases=("dora",))))
    assert capsys.readouterr().err == "without dora: ours cannot be timed: rank 8 exceeds 4\n"


def test_examples_are_read_tokenised_and_planned(tmp_path):
    path = tmp_path / "examples.tsv"
    ours_data.write(path, 40)
    head, *rows = path.read_text(encoding="utf-8").splitlines()
    assert head == "sentence\tclass" and len(rows) == len(set(rows)) == 40
    words = [len(row.split()) for row in rows]
    assert sum(words) / 40 == pytest.approx(ours_data.LENGTH + 2, abs=3)
    made = ours_data.make(Case(work="data", examples=50, rows=8))
    assert made.work() == 50


def test_programs_that_a_run_adds_to_the_cache(tmp_path):
    for name in ("jit_step-1a-cache", "jit_step-1a-atime", "jit_f-2b-cache"):
        (tmp_path / name).touch()
    assert start.programs(tmp_path) == {"jit_step-1a-cache", "jit_f-2b-cache"}
    assert start.programs(tmp_path / "none") == set()


def test_equal_memory_gives_other_methods_more_rows(monkeypatch):
    """Full training needs 1,000 bytes and 10 for a row; LoRA 200, on NF4 100, and 5 for a row."""

    def facts_of(contender):
        case = contender.case
        fixed = 1000 if case.method == "full" else 100 if case.storage == "nf4" else 200
        return {"peak_bytes": fixed + (10 if case.method == "full" else 5) * case.rows}

    monkeypatch.setattr(memory, "facts_of", facts_of)
    group = memory.fitted(memory.equal(Case(rows=32)))
    rows = {name: each.case.rows for name, each in group.contenders.items()}
    assert rows == {"full": 32, "LoRA": 224, "NF4": 244}


@pytest.mark.slow
def test_the_command_writes_its_results(tmp_path):
    line = [sys.executable, "-m", "experiments.bench", "--suite=infer", "--size=smoke"]
    line += ["--turns=2", "--cases=dora", f"--out={tmp_path}"]
    done = subprocess.run(
        line, cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("devices: ")
    assert {path.name for path in tmp_path.iterdir()} == {"infer.json", "infer.md", "infer.png"}
    content = json.loads((tmp_path / "infer.json").read_text(encoding="utf-8"))
    (group,) = content["groups"]
    assert [len(each) for each in group["seconds"].values()] == [2, 2, 2]
    assert [each["what"] for each in group["ratios"]] == ["merged/base", "unmerged/base"]
    assert "merged/base" in done.stdout and content["smoke"]
