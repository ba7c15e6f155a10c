"""What the plan says: its sentences and tables, and the command on simulated devices."""

import dataclasses
import io
import json

import commands
import pytest
from rich.console import Console

from experiments.planning import memory_fit
from experiments.planning.memory_fit import Arrays, Fit, refusal
from experiments.planning.topologies import GIB, topology

SMALL = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
REFUSALS = {
    # libtpu 0.0.42.1, Llama 2 7B on v5e:1x1
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(17.09G) exceeds available HBM (15.75G). ": "the program needs 17.09 GiB a device",
    # 0.0.42.1, a little of it with very many rows on v5p:2x2x1
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(2.43T) exceeds available HBM (95.74G). ": "the program needs 2.43 TiB a device",
    # 0.0.50.1, Llama 2 70B on v5e:2x2
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (35.91G) exceeds available HBM (15.75G). HLO module: jit_one.\n"
    "See https://openxla.org/xla/errors/error_1000 for more details. ": "the program needs "
    "35.91 GiB a device",
    # where a program's arguments fit, but not all of what it uses
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 36.06G of 15.75G hbm. Exceeded hbm capacity by 20.31G.": "the program needs "
    "36.06 GiB a device",
    "RESOURCE_EXHAUSTED: something else": "the compiler finds no way to run it",
}


@pytest.fixture(autouse=True)
def without_libtpu(monkeypatch):
    monkeypatch.setattr("experiments.planning.topologies.has_libtpu", lambda: False)


@pytest.fixture
def found():
    arrays = Arrays(*(int(each * GIB) for each in (8, 0.25, 0.5, 0)))
    return Fit(topology("v5e:4x4"), (1, 4, 4), 2, 2048, arrays, seconds=61.0)


def with_program(found, gib):
    return dataclasses.replace(found, temporaries=int(gib * GIB))


@pytest.mark.parametrize("text", REFUSALS)
def test_what_libtpu_says_of_a_program_that_does_not_fit(text):
    assert refusal(text) == REFUSALS[text]


def test_a_fit(found):
    found = with_program(found, 2.5)
    assert found.fits and found.why_not == ""
    assert memory_fit.verdict(found).startswith(
        "Fits, in 71% of a device's memory (compiled in 61 s).\nTemporaries are those of "
    )


def test_a_program_that_fits_to_the_byte(found):
    left = found.topology.capacity - found.arrays.total
    assert dataclasses.replace(found, temporaries=left).fits
    assert not dataclasses.replace(found, temporaries=left + 1).fits
    assert not dataclasses.replace(found, temporaries=left, code=1).fits


@pytest.mark.parametrize(
    ("changes", "why", "took"),
    [
        ({"temporaries": 10 * GIB}, "it asks for 18.75 GiB a device", "compiled in 61 s"),
        ({"refused": "it needs 17.09 GiB"}, "it needs 17.09 GiB", "compiled in 61 s"),
        (
            {"arrays": Arrays(20 * GIB, GIB, 2 * GIB, 0), "seconds": 0.0},
            "weights, adapters and optimiser alone are 23.00 GiB a device",
            "not compiled",
        ),
    ],
)
def test_what_does_not_fit(found, changes, why, took):
    assert memory_fit.verdict(dataclasses.replace(found, **changes)).startswith(
        f"Does not fit: {why}, more than the 15.75 GiB that a device of v5e:4x4 has. ({took})"
    )


@pytest.mark.parametrize(
    ("mesh", "rows", "accumulate", "said"),
    [
        ((1, 4, 4), 2, 1, "8 x 2048 tokens a step (2 rows a shard, 4 shards by data x fsdp)"),
        ((2, 2, 4), 1, 1, "4 x 2048 tokens a step (1 row a shard, 4 shards by data x fsdp)"),
        (
            (1, 1, 16),
            1,
            8,
            "8 x 2048 tokens a step (1 row a shard, 1 shard by data x fsdp; 8 times)",
        ),
    ],
)
def test_rows(found, mesh, rows, accumulate, said):
    changed = dataclasses.replace(found, mesh=mesh, rows=rows, accumulate=accumulate)
    assert memory_fit.rows(changed) == said


def test_what_full_fine_tuning_trains_is_not_called_adapters(found):
    whole = dataclasses.replace(found, arrays=Arrays(0, GIB, 2 * GIB, 0))
    names = [str(cell) for cell in memory_fit.memory(whole).columns[0].cells]
    assert names[:2] == ["weights", "trained"]


def test_all_of_it_fits_a_terminal_of_80_columns(found):
    console = Console(width=80, file=io.StringIO(), soft_wrap=True)
    console.print(memory_fit.show(with_program(found, 2.5)))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    values = {row[1]: row[3] for row in map(str.split, lines) if len(row) == 5 and row[0] == "│"}
    assert values["temporaries"] == "2.50"
    assert (values["total"], values["capacity"]) == ("11.25", "15.75")


def command(*arguments):
    return commands.run("experiments.plan", *arguments, COLUMNS="80")


@pytest.fixture
def small(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    return "--config=configs/llama2_70b.py:tokens=64", f"--config.model.name={tmp_path}"


def test_the_command(small):
    done = command(*small, "--topology=h100:2")
    assert done.returncode == 0, done.stderr
    assert "h100:2: 2 devices of 74.51 GiB, compiled on simulated devices" in done.stdout
    assert "mesh: data 1 x fsdp 2 x tensor 1" in done.stdout
    assert "batch: 4 x 64 tokens a step (2 rows a shard, 2 shards by data x fsdp)" in done.stdout
    assert "Fits, in 0% of a device's memory" in done.stdout


def test_the_command_where_it_does_not_fit():
    done = command("--config=configs/llama2_70b.py", "--topology=h100:1")
    assert done.returncode == 2, done.stderr
    assert "Does not fit: weights, adapters and optimiser alone are 130.79 GiB" in done.stdout
    assert "(not compiled)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--topology=v5f:4x4",), "no devices 'v5f'; nearest: 'v5"),
        (("--topology=h100:8", "--mesh=1,3,2"), "--mesh=1,3,2 needs 6 devices; there are 8"),
        (("--topology=h100:8", "--tokens=8"), "--tokens would be ignored: it goes with --table"),
        ((), "--topology is missing: "),
    ],
)
def test_a_mistake_on_the_command_line(arguments, said):
    done = command("--config=configs/llama2_70b.py", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
