"""SIGTERM asks a run to end after its step, and goes to the earlier handler otherwise."""

import concurrent.futures
import os
import signal

import pytest
from small_training import fit

from lora_jax.training import preemption

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize("signals", [1, 2])
def test_sigterm_is_told_after_the_step_that_it_came_in(tmp_path, signals):
    before = signal.getsignal(signal.SIGTERM)

    def scores(found):
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    with preemption.preemption() as interrupted:
        _, outcome = fit(tmp_path, scores=scores, interrupted=interrupted)
    assert (outcome.interrupted, outcome.steps) == (True, 8)  # the evaluation is that of step 7
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_sigterm_after_the_last_step_is_for_the_handler_before():
    told = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        with preemption.preemption() as interrupted:
            assert not interrupted(1)
            os.kill(os.getpid(), signal.SIGTERM)
        assert told == [signal.SIGTERM]
        with preemption.preemption() as interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupted(1)
        assert told == [signal.SIGTERM]
        with pytest.raises(MemoryError), preemption.preemption():
            os.kill(os.getpid(), signal.SIGTERM)
            raise MemoryError  # in the step that it came in
        assert told == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_sigterm_is_what_it_was():
    before = signal.getsignal(signal.SIGTERM)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", None)  # which Python allows in the main thread only
        assert pool.submit(lambda: preemption.preemption().__enter__()(1)).result() is False
    assert signal.getsignal(signal.SIGTERM) is before
