"""The cost of a run: its steps and FLOPs, and its time by a roofline."""

import json

import pytest
from commands import ROOT

from experiments.planning.run_cost import RunCost, StepCost, examples, step_cost, steps_of
from experiments.planning.topologies import ACCELERATORS, Accelerator, accelerator, measured
from experiments.setup.config import parse
from experiments.setup.config_flags import read_config

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def config(*flags):
    return parse(read_config(flags).to_dict())


def test_a_step_takes_as_long_as_the_slower_of_products_and_traffic():
    device = Accelerator(narrow=100.0, wide=50.0, traffic=10.0, memory=1.0)
    for flops, traffic, narrow, seconds in (
        (1000.0, 1.0, False, 1000 / 50),
        (1000.0, 1.0, True, 1000 / 100),
        (1000.0, 500.0, True, 500 / 10),
    ):
        step = StepCost(flops, 1.0, traffic, narrow)
        assert step.seconds(device, 1.0) == seconds
        assert step.seconds(device, 0.25) == 4 * seconds
        assert RunCost(step, 36).hours(device, 1.0) == pytest.approx(seconds / 100)
    assert RunCost(step, None).hours(device, 1.0) is None


LORA, FULL = "--config=configs/quickstart.py", "--config=configs/quickstart.py:variant=full"
RANK, NARROW = "--config.variant.rank=8", "--config.model.products=bfloat16"


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    ("name", "flags", "traffic"),
    [
        ("lora on all, 32 x 48, float32", (LORA, RANK), 0.02),
        ("lora on all, 32 x 48, bfloat16", (LORA, RANK, NARROW), 0.05),
        ("full, 32 x 48, float32", (FULL,), 0.25),
    ],
)
def test_a_step_has_the_flops_and_the_traffic_that_xla_counts(name, flags, traffic, monkeypatch):
    """In steps that the committed benchmark compiled, without a loop over layers.

    FLOPs are of products alone, and of a head with two outputs.
    """
    # As on the machine of the benchmark.
    monkeypatch.setattr("experiments.setup.forward_pass.multiplies_bfloat16", lambda: True)
    path = ROOT / "experiments" / "results" / "bench" / "train.json"
    groups = json.loads(path.read_text(encoding="utf-8"))["groups"]
    (facts,) = [each["facts"]["ours"] for each in groups if each["name"] == f"minilm, {name}"]
    found = step_cost(config(*flags), 48)
    assert found.flops == pytest.approx(facts["flops"], rel=0.02)
    assert found.traffic == pytest.approx(facts["bytes_accessed"], rel=traffic)
    assert found.narrow == (NARROW in flags)


@pytest.mark.usefixtures("standard_promotion")
def test_a_model_need_not_be_here():
    """RoBERTa base: 85 million weights in its layers, of which each token takes 4 FLOPs."""
    flags = "--config=configs/lora_table2.py:model=roberta_base,task=cola"
    found = step_cost(config(flags, "--config.model.products=bfloat16"), 64)
    assert found.narrow
    assert 1.0 < found.flops / (4 * 85.05e6 * 32 * 64) < 1.1
    weights = 4 * 124.6e6
    assert weights < found.memory < 12 * weights


def test_the_steps_of_a_run():
    cola = "--config=configs/lora_table2.py:model=roberta_base,task=cola"
    assert steps_of(config(cola)) == 80 * -(-8551 // 32)
    assert steps_of(config(cola, "--config.data.train=320")) == 80 * 10
    assert steps_of(config(cola, "--config.train.max_steps=7")) == 7
    assert steps_of(config("--config=configs/quickstart.py")) is None
    copa = "--config=configs/glue.py:task=copa,model=roberta_base,source=tsv,folder=x"
    chosen = config(copa)  # each of 400 questions has two choices, and each is an example
    assert steps_of(chosen) == chosen.train.epochs * -(-800 // chosen.train.batch_size)
    assert examples("unheard_of") is None
    assert examples("unheard_of", 5) == examples("glue/rte", 5) == 5


def test_a_device_that_there_is_not():
    assert accelerator("rtx4090") is ACCELERATORS["rtx4090"]
    with pytest.raises(ValueError, match=r"^--device=h10: unknown device; nearest: 'h100'"):
        accelerator("h10")
    with pytest.raises(ValueError, match=r"^--device=x: unknown device: there are h100, .*, cpu$"):
        accelerator("x")


def test_this_machine_is_measured():
    found = measured(size=64, repeats=2)
    assert min(found.narrow, found.wide, found.traffic) > 0
