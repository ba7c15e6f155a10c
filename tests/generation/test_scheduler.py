"""Texts that share lanes get the tokens that `generate` gives each alone."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from one_line import refuses
from small_decoder import random_decoder
from zoo.check import random_like

import lora_jax as lj
import variants
from experiments.serving.engines import Generating
from lora_jax.generation import lanes as programs, scheduler as scheduling
from lora_jax.generation.choose_token import Sampling
from lora_jax.generation.generate import generate
from lora_jax.generation.scheduler import Request, Scheduler
from lora_jax.models.parts.kv_cache import cached_step
from lora_jax.partition import flatten

CAPACITY, WORDS, NEW = 40, 23, 12
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
        bank = lj.Bank(step, params, capacity=4, max_rank=3, way="gather")
        for slot, (adapter, _) in enumerate(found, 1):
            bank = bank.put(slot, adapter)
        weights = [params, *(merged for _, merged in found)]
        return Served(bank, step, weights, [adapter for adapter, _ in found])


@pytest.fixture
def started(served, x64):
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
    length = random.choice([1, 2, 5, 9, 31, 32, 33, CAPACITY - 1, CAPACITY])
    return Request(
        slot=int(random.integers(4)) if slot is None else slot,
        prompt_ids=random.integers(0, WORDS, length).tolist(),
        max_new_tokens=int(random.integers(1, NEW + 1)),
        sampling=Sampling(**kind, seed=int(random.integers(2**32))),
        stop_ids=tuple(random.integers(0, WORDS, random.integers(3)).tolist()),
    ), kind


def copied(bank):
    """A bank with arrays of its own."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), bank)


def texts_of(events):
    """The tokens of each text, and how it ended."""
    found = {}
    for event in events:
        tokens, finish = found.setdefault(event.number, ([], None))
        assert finish is None, "a text that had ended went on"
        tokens += [] if event.token is None else [event.token]
        found[event.number] = tokens, event.finish
    return found


def finished(scheduler, *requests):
    """What becomes of requests, in their order."""
    numbers, events = [scheduler.submit(request) for request in requests], []
    while scheduler.waiting or scheduler.active:
        events += scheduler.step()
    found = texts_of(events)
    return [found[number] for number in numbers]


def test_tokens_are_those_of_each_text_alone(served, started):
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
    ends, slots = set(), set()
    for number, (request, kind) in given.items():
        tokens, finish = found[number]
        expected, end = alone(served, request, kind)
        if number in cancelled:
            assert finish == "cancelled" and tokens == expected[: len(tokens)]
        else:
            assert (tokens, finish) == (expected, end)
            ends.add(end)
            slots.add(request.slot)
    assert ends == {"stop", "length"} and slots == {0, 1, 2, 3}


def test_only_the_first_text_of_a_length_compiles(served, started, compilations):
    """Not those that follow, with whatever settings, nor adapters that are put and removed."""
    scheduler, (first, second, _) = started(lanes=2), served.adapters
    scheduler.warm_up()
    with compilations() as counted:
        finished(scheduler, Request(1, [1], 3))
        finished(scheduler, Request(2, [1] * 33, 3, Sampling(0.7, top_k=3, top_p=0.5, seed=9)))
        scheduler.bank = scheduler.bank.put(1, second).remove(2).put(4, first)
        finished(scheduler, *[Request(4, [1] * 17, 3, Sampling(temperature=1.0))] * 3)
        scheduler.cancel(scheduler.submit(Request(1, [2, 3], 9)))
        number = scheduler.submit(Request(1, [2, 3], 9))
        scheduler.step()
        scheduler.cancel(number)
        scheduler.step()
    assert not counted


def test_adapters_change_between_texts_and_not_under_them(served, started):
    """In place: the bank's arrays are those that the scheduler had."""
    scheduler, (first, second, third) = started(lanes=2), served.adapters
    scheduler.bank = copied(served.bank)
    number = scheduler.submit(Request(1, [1, 2], 9))
    scheduler.step()
    for change in (lambda: scheduler.put(1, second), lambda: scheduler.remove(1)):
        refuses("slot 1 is used by a text that has not ended", change)
    refuses("slot 5: a bank of capacity 4", scheduler.put, 5, second)
    places = [x.unsafe_buffer_pointer() for x in scheduler.bank.held.arrays.values()]
    scheduler.put(2, first)
    scheduler.put(4, third)
    scheduler.remove(3)
    assert places == [x.unsafe_buffer_pointer() for x in scheduler.bank.held.arrays.values()]
    asked = [Request(slot, [1, 2], 9) for slot in (2, 4, 3)]
    meant = [
        dataclasses.replace(each, slot=slot) for each, slot in zip(asked, (1, 3, 0), strict=True)
    ]
    scheduler.cancel(number)
    expected = [alone(served, each, {}) for each in meant]
    assert finished(scheduler, *asked) == expected
    assert len({tuple(tokens) for tokens, _ in expected}) == 3


def test_what_the_engine_lets_go_of_is_written_in_place(served, x64, compilations):
    """By a put of others than the scheduler; it goes on, by the same programs."""
    bank, first = copied(served.bank), served.adapters[0]
    engine = Generating(bank, lanes=2, tokens=CAPACITY)
    engine.warm(bank)
    asked = [Request(slot, [1, 2], 3) for slot in (2, 1, 2)]
    numbers = [engine.submit(each.slot, each) for each in asked[:2]]
    found = texts_of(itertools.chain.from_iterable(engine.step(bank) for _ in range(3)))
    places = [x.unsafe_buffer_pointer() for x in bank.held.arrays.values()]
    with compilations() as counted:
        engine.let_go()
        bank = bank.put(2, first, donate=True)
        assert places == [x.unsafe_buffer_pointer() for x in bank.held.arrays.values()]
        list(engine.step(bank))
        engine.let_go()
        numbers.append(engine.submit(2, asked[2]))
        found |= texts_of(itertools.chain.from_iterable(engine.step(bank) for _ in range(3)))
    assert not counted
    meant = [*asked[:2], dataclasses.replace(asked[2], slot=1)]
    assert [found[number] for number in numbers] == [alone(served, each, {}) for each in meant]
    assert found[numbers[0]] != found[numbers[2]]


def test_an_adapter_that_is_no_number_ends_its_own_text_alone(served, started):
    scheduler, bank = started(lanes=2), served.bank.put(4, served.adapters[0])
    broken = {
        key: x.at[(slice(None),) * key.depth + (4,)].set(jnp.nan)
        for key, x in bank.held.arrays.items()
        if key.part == "trainable"
    }
    held = dataclasses.replace(bank.held, arrays=bank.held.arrays | broken)
    scheduler.bank = dataclasses.replace(bank, held=held)
    long = Request(4, [1, 2] * 12, 4)  # it leaves more behind in its lane than the next one takes
    asked = [long, *(Request(slot, [1, 2], 4) for slot in (1, 4, 4, 2, 3))]
    found = finished(scheduler, *asked)
    error, good = ([], "error"), {n: alone(served, asked[n], {}) for n in (1, 4, 5)}
    assert found == [error, good[1], error, error, good[4], good[5]]


def test_a_bank_that_cannot_be_taken_is_not_taken(served, started, monkeypatch):
    scheduler, other = started(lanes=1), served.bank.put(4, served.adapters[0])

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(scheduling, "separate_bank", fail)
        with pytest.raises(MemoryError):
            scheduler.bank = other
    assert scheduler.bank is served.bank


def test_after_an_error_texts_that_wait_go_on(served, started, monkeypatch):
    scheduler, asked = started(lanes=2), [Request(slot, [1, 2], 4) for slot in (1, 2, 3)]
    numbers = [scheduler.submit(each) for each in asked]
    with monkeypatch.context() as patched:

        def fail(*_):
            raise RuntimeError("out of memory")

        patched.setattr(programs.Programs, "advance", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            scheduler.step()
    assert (scheduler.active, scheduler.waiting) == ((), (numbers[2],))
    found = texts_of([*scheduler.step(), *scheduler.step(), *scheduler.step()])
    expected = [alone(served, each, {})[0] for each in asked]
    assert [found[number] for number in numbers] == [
        (expected[0][:1], "error"),
        (expected[1][:1], "error"),
        (expected[2], "length"),
    ]


@pytest.mark.slow
def test_weights_that_are_divided_over_devices(served, started, compilations):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))

    def divided(x):
        last = "model" if x.ndim and x.shape[-1] % 8 == 0 else None
        spec = PartitionSpec(*[None] * (x.ndim - 1), last) if x.ndim else PartitionSpec()
        return jax.device_put(np.asarray(x), NamedSharding(mesh, spec))

    params = jax.tree.map(divided, served.weights[1])
    scheduler = Scheduler(lj.Bank(served.step, params, capacity=1), lanes=2, capacity=CAPACITY)
    meant = [Request(1, [1, 2], 6), Request(1, [3] * 17, 6)]
    asked = [dataclasses.replace(each, slot=0) for each in meant]
    expected = [alone(served, each, {}) for each in meant]
    scheduler.warm_up()
    with compilations() as counted:
        assert finished(scheduler, *asked) == expected
    assert not counted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_ids": []}, "a prompt must have 1 to 40 tokens, the capacity; got 0"),
        ({"prompt_ids": [1] * 41}, "a prompt must have 1 to 40 tokens, the capacity; got 41"),
        ({"prompt_ids": [1, 23]}, "a prompt has token 23; the model has 0 to 22"),
        ({"prompt_ids": [1, -1]}, "a prompt has token -1; the model has 0 to 22"),
        ({"prompt_ids": [0.5]}, r"a prompt must be whole numbers, got float64\[1\]"),
        ({"slot": 5}, "slot must be an integer <= 4, got 5"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer >= 1, got 0"),
        ({"stop_ids": ("a",)}, "stop_ids must be an integer >= 0, got 'a'"),
    ],
)
def test_what_is_refused(changes, message, started):
    scheduler = started(lanes=1)
    refuses(
        message,
        scheduler.submit,
        Request(**{"slot": 0, "prompt_ids": [1], "max_new_tokens": 1, **changes}),
    )
    assert scheduler.waiting == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0 or above, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be a finite number, got nan"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_k": -1}, "top_k must be an integer >= 0, got -1"),
        ({"seed": 2**32}, "seed must be an integer <= 4,294,967,295"),
    ],
)
def test_sampling_that_is_refused(changes, message):
    refuses(message, Sampling, **changes)


def test_banks_and_sizes_that_are_refused(served, started):
    refuses(
        "must compute step by step: a CachedStep",
        Scheduler,
        lj.Bank(lambda params, ids: ids, served.weights[0]),
    )
    refuses(
        "a cache of 33 tokens; the model takes at most 32",
        Scheduler,
        lj.Bank(*cached_step(random_decoder("gpt2"))),
        capacity=33,
    )
    scheduler = started(lanes=1)
    scheduler.submit(Request(0, [1], 3))
    scheduler.step()
    refuses("only without texts in lanes", scheduler.warm_up)
