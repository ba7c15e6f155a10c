"""An adapter that memory has no room for is refused before the bank's arrays are made."""

import pytest
from support import stored_adapters as stored

import lora_jax as lj
from lora_jax.serving import room
from lora_jax.serving.room import NoMemoryError


@pytest.mark.parametrize("donate", [True, False])
def test_what_is_new_needs_memory_for_every_slot(monkeypatch, donate):
    """As many bytes as the arrays have that are made; twice, if the bank stays."""
    bank = lj.Bank(stored.forward, stored.PARAMS, capacity=3, max_rank=2)
    plain = stored.begun()
    whole = stored.begun(also_train="down/kernel")
    made = bank.put(1, plain)
    before, after = (_nbytes(each) for each in (made, made.put(2, whole)))
    of_slot = 6 * 3 * 4 + 1  # the parameter's shape, bytes of a number, and whether it trains
    assert after - before == 4 * of_slot
    needed = after - before if donate else 2 * after - before
    monkeypatch.setattr(room, "available", lambda: needed - 1)
    with pytest.raises(NoMemoryError, match=r"trains 'down/kernel', .* 4 copies .* take 0\.0 MiB"):
        made.put(2, whole, donate=donate)
    monkeypatch.setattr(room, "available", lambda: needed)
    made = made.put(2, whole, donate=donate)
    monkeypatch.setattr(room, "available", lambda: 0)
    made.put(3, whole).put(1, plain)  # nothing is new


def _nbytes(bank):
    return sum(x.nbytes for x in bank.held.arrays.values())
