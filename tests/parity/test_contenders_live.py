"""Contenders of the benchmarks that use Qwix and PEFT do the same work as ours."""

import dataclasses

import pytest

from benchmarks import models
from benchmarks.cases import Case
from benchmarks.contenders import hand, ours, with_peft, with_qwix
from benchmarks.suites.training import CASES, SMOLLM2

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),  # what other libraries warn of is not about us
    pytest.mark.usefixtures("standard_promotion"),
]
BERT = Case(model="tiny bert", rows=4, tokens=16)


def test_qwix_trains_lora_in_the_same_encoder():
    """It trains as many numbers as LoRA by hand, from the same loss, in about the same steps."""
    found = [side.step_work(BERT) for side in (hand, with_qwix)]
    ours, qwix = ([made.work() for _ in range(4)] for made in found)
    assert qwix[0] == pytest.approx(ours[0], rel=1e-5)  # nothing has been added to the base yet
    assert qwix == pytest.approx(ours, rel=5e-3) and qwix[-1] < qwix[0]
    assert found[1].facts["flops"] == pytest.approx(found[0].facts["flops"], rel=0.02)


@pytest.mark.parametrize(
    "case",
    [*(case for case, *_ in CASES), SMOLLM2],
    ids=lambda case: f"{case.model}, {case.method}, {case.targets}",
)
def test_both_sides_learn_the_same_batch(case):
    """Before the first step, both have the published model: their first losses are equal."""
    small = dataclasses.replace(case, rows=4, tokens=16)
    losses = {}
    for side in (ours, with_peft):
        work = side.step_work(small).work
        losses[side] = [work() for _ in range(6)]
        assert losses[side][-1] < losses[side][0]
    if models.family(case) == "llama":
        assert losses[ours][0] == pytest.approx(losses[with_peft][0], rel=1e-3)
    elif case.method != "adalora":  # whose loss has a penalty, too
        # Two classes and a head that knows nothing.
        assert [each[0] for each in losses.values()] == pytest.approx([0.69] * 2, abs=0.1)


def test_both_sides_mix_adapters_of_the_same_model():
    """Adapters that begin at the base: both give the published model's loss."""
    case = dataclasses.replace(SMOLLM2, work="mixed", rows=3, tokens=16, adapters=2)
    likelihoods = ours.mixed_work(case).work()
    loss = -likelihoods.sum() / (case.rows * (case.tokens - 1))
    assert with_peft.mixed_work(case).work() == pytest.approx(float(loss), rel=1e-3)
