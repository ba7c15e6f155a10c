"""Programs by the structure of banks: which are kept, and which go."""

import numpy as np
import pytest
from support import stored_adapters as stored

import lora_jax as lj
from lora_jax.serving.programs import KEPT, ProgramsOfBanks


@pytest.fixture(scope="module")
def banks():
    """One bank without adapters, one with LoRA, and one that has a parameter in full besides."""
    empty = lj.Bank(stored.forward, stored.PARAMS, capacity=2, max_rank=2)
    lora = empty.put(1, stored.begun())
    return empty, lora, lora.put(2, stored.begun(also_train=("down/kernel",)))


def test_banks_share_them_unless_other_arrays_are_there(banks):
    found = ProgramsOfBanks(object)
    own = [found.of(bank) for bank in banks]
    assert len(set(own)) == 3
    for bank, each in zip(banks, own, strict=True):
        assert bank.shapes() in found and found.of(bank.shapes()) is each
    assert found.of(banks[1].put(2, stored.begun())) is own[1]
    wider = lj.Bank(stored.forward, stored.PARAMS, capacity=2, max_rank=3).put(1, stored.begun())
    assert wider not in found


def test_those_for_what_a_bank_has_not_are_dropped(banks):
    found = ProgramsOfBanks(object)
    for bank in banks:
        found.of(bank)
    found.drop(banks[1])
    assert [bank in found for bank in banks] == [True, True, False]


def test_those_that_fail_to_compile_are_not_there(banks):
    found = ProgramsOfBanks(object)
    with pytest.raises(ZeroDivisionError):
        found.compile(banks[0], lambda own: 1 / 0)
    assert banks[0] not in found
    found.compile(banks[0], lambda own: None)
    assert banks[0] in found


def test_those_that_were_used_last_are_kept():
    found = ProgramsOfBanks(object)
    names = [f"{number}" for number in range(KEPT + 1)]
    banks = [lj.Bank(stored.forward, {name: np.ones(1, np.float32)}) for name in names]
    for bank in banks[:-1]:
        found.of(bank)
    found.of(banks[0])
    found.of(banks[-1])
    assert [bank in found for bank in banks] == [True, False, *[True] * (KEPT - 1)]
    found.of(banks[1])  # in the place of the first, for which the list above has asked before all
    assert [bank in found for bank in banks] == [False, *[True] * KEPT]
