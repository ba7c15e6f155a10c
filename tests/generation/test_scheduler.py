"""Texts that share lanes get the tokens that `generate` gives each alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoder import random_decoder
from zoo.check import random_like

import lora_jax as lj
import variants
from lora_jax.generation.choose_token import Sampling
from lora_jax.generation.generate import generate
from lora_jax.generation.scheduler import Request, Scheduler
from lora_jax.models.parts.kv_cache import cached_step
from lora_jax.partition import flatten

CAPACITY, WORDS, NEW = 24, 23, 12
KINDS = (
    {},
    {"temperature": 0.9},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.1, "top_k": 5},
    {"temperature": 0.7, "top_k": 9, "top_p": 0.6},
)
"""Settings of `generate`: greedy, and each way to draw."""


@dataclasses.dataclass(frozen=True)
class Served:
    bank: lj.Bank
    step: object
    weights: list
    """Of each slot: the base's parameters with its adapter merged."""
    adapters: list


def adapter_of(decoder, targets, seed):
    forward, params = lj.from_nnx(decoder)
    adapted = lj.adapt(forward, targets=targets)

    @jax.jit
    def begun(params):
        trainable, frozen = adapted.init(jax.random.key(seed), params, jnp.ones((1, 2), jnp.int32))
        moved = jax.tree.map(jnp.add, trainable, random_like(trainable, seed))
        return moved, frozen, adapted.merge(moved, frozen)

    moved, frozen, merged = begun(params)
    leaves, _ = flatten(params)
    frozen = dataclasses.replace(frozen, base={path: leaves[path] for path in frozen.base})
    return (moved, frozen), merged


@pytest.fixture(scope="module")
def served():
    lora, dora = variants.make("lora", rank=2), variants.make("dora", rank=2)
    targets = [
        {"(query|value)/kernel": lora},
        {"(query|up)/kernel": variants.make("lora", rank=3)},
        {"value/kernel": dora, "query/kernel": lora},
    ]
    with jax.enable_x64(True):
        decoder = random_decoder("qwen3_windows", options={"param_dtype": jnp.float64})
        step, params = cached_step(decoder)
        found = [adapter_of(decoder, each, seed) for seed, each in enumerate(targets, 1)]
        bank = lj.Bank(step, params, capacity=4, max_rank=3)
        for slot, (adapter, _) in enumerate(found, 1):
            bank = bank.put(slot, adapter)
        weights = [params, *(merged for _, merged in found)]
        return Served(bank, step, weights, [adapter for adapter, _ in found])


@pytest.fixture
def started(served):
    with jax.enable_x64(True):
        return functools.partial(Scheduler, served.bank, capacity=CAPACITY)


def alone(served, request, kind):
    """The text that a request gets from `generate`, which reads it by itself."""
    ids = np.zeros((1, CAPACITY), np.int32)
    ids[0, : len(request.prompt_ids)] = request.prompt_ids
    key = jax.random.key(request.sampling.seed)[None] if kind else None
    out = generate(
        served.step,
        (served.weights[request.slot],),
        jnp.asarray(ids),
        jnp.asarray(np.arange(CAPACITY)[None] < len(request.prompt_ids)),
        max_new_tokens=NEW,
        eos_ids=None,
        pad_id=0,
        key=key,
        **kind,
    )
    text = np.asarray(out.tokens)[0].tolist()
    text = text[: min(request.max_new_tokens, CAPACITY - len(request.prompt_ids) + 1)]
    end = next((i for i, token in enumerate(text) if token in request.stop_ids), None)
    return (text, "length") if end is None else (text[: end + 1], "stop")


def drawn_request(random, slot=None):
    kind = KINDS[random.integers(len(KINDS))]
    length = random.choice([1, 2, 5, 15, 16, 17, CAPACITY - 1, CAPACITY])
    return Request(
        slot=int(random.integers(4)) if slot is None else slot,
        prompt_ids=random.integers(0, WORDS, length).tolist(),
        max_new_tokens=int(random.integers(1, NEW + 1)),
        sampling=Sampling(**kind, seed=int(random.integers(2**32))),
        stop_ids=tuple(random.integers(0, WORDS, random.integers(3)).tolist()),
    ), kind


def texts_of(events):
    """The tokens of each text, and how it ended."""
    found = {}
    for event in events:
        tokens, finish = found.setdefault(event.number, ([], None))
        assert finish is None, "a text that had ended went on"
        tokens += [] if event.token is None else [event.token]
        found[event.number] = tokens, event.finish
    return found


@pytest.mark.usefixtures("x64")
class TestTokens:
    def test_are_those_of_each_text_alone(self, served, started):
        """Whatever joins, leaves and is cancelled, in lanes that others had before."""
        random, scheduler = np.random.default_rng(0), started(lanes=3)
        given, cancelled, events = {}, set(), []
        while len(given) < 40 or scheduler.waiting or scheduler.active:
            for _ in range(random.integers(3) if len(given) < 40 else 0):
                request, kind = drawn_request(random)
                given[scheduler.submit(request)] = request, kind
            if random.random() < 0.1 and (there := scheduler.waiting + scheduler.active):
                cancelled.add(number := int(random.choice(there)))
                scheduler.cancel(number)
                assert number not in scheduler.waiting + scheduler.active
            assert len(scheduler.active) <= 3
            events += scheduler.step()
        found = texts_of(events)
        assert found.keys() == given.keys() and len(cancelled) > 3
        ends = set()
        for number, (request, kind) in given.items():
            tokens, finish = found[number]
            expected, end = alone(served, request, kind)
            if number in cancelled:
                assert finish == "cancelled" and tokens == expected[: len(tokens)]
            else:
                assert (tokens, finish) == (expected, end)
                ends.add((end, request.slot))
        assert len(ends) > 6


def test_only_the_first_text_of_a_length_compiles(served, started, compilations, x64):
    """Not those that follow, with whatever settings, nor adapters that are put and removed."""
    scheduler, (first, second, _) = started(lanes=2), served.adapters

    def run(slot, length, **sampling):
        scheduler.submit(Request(slot, [1] * length, 3, Sampling(**sampling)))
        while scheduler.active or scheduler.waiting:
            scheduler.step()

    run(0, 3)
    run(0, CAPACITY)
    with compilations() as counted:
        run(1, 1)
        run(2, 16, temperature=0.7, top_k=3, top_p=0.5, seed=9)
        scheduler.bank = scheduler.bank.put(1, second).remove(2).put(4, first)
        run(4, 17, temperature=1.0)
        scheduler.cancel(scheduler.submit(Request(1, [2, 3], 9)))
        scheduler.step()
        number = scheduler.submit(Request(1, [2, 3], 9))
        scheduler.step()
        scheduler.cancel(number)
    assert not counted
