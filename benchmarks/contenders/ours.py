"""What this project does: steps, forward passes, texts, banks of adapters, and reading of data."""

import dataclasses
import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lora_jax as lj
import variants
from benchmarks import models
from benchmarks.cases import BUDGET, STEPS, Case
from benchmarks.contenders.made import Made, compilation, compilations, compiled, stepping
from configs.settings import DecoderSettings
from experiments.setup.forward_pass import predictor, separated
from experiments.setup.from_config import variants_of
from experiments.setup.validate import LAYERS
from lora_jax import data
from lora_jax.generation.generate import generate
from lora_jax.generation.scheduler import Request, Scheduler
from lora_jax.models.parts.kv_cache import cached_step
from lora_jax.models.parts.separate_layers import separate, stacked
from lora_jax.models.published.location import locate
from lora_jax.training import optim
from lora_jax.training.step import Loss, Predict, Step, TrainState, make_step, make_train_step
from lora_jax.training.trial_program import make_program


def step_work(case: Case) -> Made:
    """Training steps."""
    return stepping(*training(case), models.batch(case))


def training(case: Case) -> tuple[Step, TrainState, lj.Frozen]:
    """The jitted step of a case, and its first two arguments."""
    adapted, trainable, frozen, loss = adapt(case)
    tx = optimizer()
    step = make_train_step(adapted, tx, predict_of(adapted, case), loss, clip=1.0)
    # Copied: the step donates its state, of which method `full` shares the arrays.
    trainable = jax.tree.map(jnp.copy, trainable)
    state = TrainState.create(adapted, tx, trainable, frozen, jax.random.key(0))
    (half,) = separated(settings_of(case), frozen)
    return step, state, half


def optimizer(rate: Any = 1e-3) -> Any:
    """AdamW, as torch has it by default; the step clips."""
    return optim.adamw(rate, clip=None, weight_decay=0.01)


def adapt(case: Case) -> tuple[lj.Adapted, Any, lj.Frozen, Loss]:
    """A case's adapted model, what it trains, what it does not, and its loss."""
    call, params, loss = models.forward(models.load(case), case)
    head = ("classifier/.*",) if models.family(case) == "bert" else ()
    if case.method == "full":
        adapted = lj.adapt(call, None, {"all-linear": variants.make("full")}, [".*"])
    else:
        stored = {models.pattern(case): lj.NF4()} if case.storage == "nf4" else {}
        adapted = lj.adapt(call, None, targets(case), head, stored)
    batch = models.batch(case)

    def mean_loss(model: Any, batch: Any) -> Any:
        return loss(model(*inputs(batch)), batch).mean()

    key, seen = jax.random.key(0), {"batches": [batch], "loss": mean_loss}
    return adapted, *adapted.init(key, params, *inputs(batch), **seen), loss


def targets(case: Case) -> dict[Any, lj.Variant]:
    """The variant of each pattern of weights that a case adapts."""
    budget = {**BUDGET, "total_steps": STEPS} if case.method == "adalora" else {}
    everything = (models.pattern(case),)
    if case.rank:
        return variants_of(everything, case.method, {"rank": case.rank, **budget})
    suggested = variants.find(case.method).suggested.targets
    return variants_of(suggested or everything, case.method, budget)


def inputs(batch: Mapping[str, Any]) -> list[Any]:
    """What a model takes of a batch."""
    return [batch[name] for name in models.INPUTS]


def predict_of(adapted: lj.Adapted, case: Case) -> Predict:
    """The adapted model as a function of a batch, as in a run without dropout."""
    return predictor(adapted, settings_of(case))


def settings_of(case: Case) -> DecoderSettings:
    """The settings of a case's model in a run; an encoder has fewer."""
    return DecoderSettings(
        name=case.model,
        dropout=False,
        products=None if case.products == "float32" else case.products,
        unroll=case.unroll,
        remat=LAYERS if case.remat else "",
    )


def compilation_work(case: Case) -> Made:
    """The tracing and compilation of a training step."""
    return compilation(case, *training(case))


def forward_work(case: Case) -> Made:
    """A forward pass of the base, with the adapter merged into it, or beside it."""
    batch = models.batch(case)
    inputs = [batch[name] for name in models.INPUTS]
    if case.weights == "base":
        call, weights, _ = models.forward(models.load(case), case)
        given: Any = (weights,)
    else:
        adapted, *given, _ = adapt(case)
        call = adapted.apply
        if case.weights == "merged":
            call, given = adapted.forward, (adapted.merge(*given),)
    weights = separate(tuple(given), case.unroll)

    @jax.jit
    def forward(weights: Any, *inputs: Any) -> Any:
        return call(*stacked(weights), *inputs)

    program, facts = compiled(forward, weights, *inputs)
    return Made(lambda: jax.block_until_ready(program(weights, *inputs)), facts)


def generation_work(case: Case) -> Made:
    """Greedy generation with the cache, from prompts of random tokens."""
    step, params = cached_step(models.load(case))  # type: ignore[arg-type]
    call, given = step, (params,)
    if case.weights == "unmerged":
        adapted, *given, _ = adapt(case)
        call = dataclasses.replace(adapted, forward=step).apply  # kept: a new one compiles again
    prompts: Any = models.batch(case)["input_ids"]
    settings = {"max_new_tokens": case.written, "eos_ids": None, "pad_id": 0}

    def work() -> None:
        jax.block_until_ready(generate(call, given, prompts, **settings))

    return Made(work, {"tokens": case.rows * case.written})


def trials_work(case: Case) -> Made:
    """A step of several trials at once, in one program over one base."""
    adapted, trainable, frozen, loss = adapt(case)
    step = make_step(adapted, predict_of(adapted, case), loss)

    def traced(hyper: Any, state: TrainState, frozen: Any, batch: Any) -> Any:
        return step(optimizer(hyper["rate"]), 1.0, state, frozen, batch)

    rates = [{"rate": jnp.float32(1e-4 * (1 + number))} for number in range(case.trials)]
    halves = separated(settings_of(case), *[frozen] * case.trials)
    program = make_program("vmap", traced, halves, rates)
    key, batches = jax.random.key(0), [models.batch(case)] * case.trials
    first = TrainState.create(adapted, optimizer(), trainable, frozen, key)
    states = program.start([first] * case.trials)
    # The program itself would compile once more: its function is called here as it calls it.
    function, facts = compiled(program.jitted, *program.arguments(states, batches))

    def work() -> None:
        nonlocal states
        states, _ = jax.block_until_ready(function(*program.arguments(states, batches)))

    return Made(work, facts)


def mixed_work(case: Case) -> Made:
    """A forward pass in which each row has an adapter of its own, out of a bank."""
    adapted, trainable, frozen, _ = adapt(case)
    adapter = trainable, frozen
    bank = filled(adapted.forward, adapter, case)
    arrays, batch = separate(bank, case.unroll), inputs(models.batch(case))

    @jax.jit
    def forward(arrays: Any, slots: Any, *batch: Any) -> Any:
        return stacked(arrays).apply(slots, *batch)

    slots = jnp.asarray(models.slots_of(case))
    program, facts = compiled(forward, arrays, slots, *batch)
    with compilations() as counted:
        jax.block_until_ready(
            program(arrays, jnp.asarray(np.roll(models.slots_of(case), 1)), *batch)
        )
    facts = {**facts, "compilations": float(len(counted))}
    return Made(lambda: jax.block_until_ready(program(arrays, slots, *batch)), facts)


def filled(forward: Any, adapter: Any, case: Case) -> lj.Bank:
    """A bank with the same adapter in every slot, where each is held apart."""
    # Cases of one slot are compared with each other, and each process might measure another way.
    way = "measured" if case.slot is None else "gather"
    bank = lj.Bank(forward, adapter, capacity=case.adapters, max_rank=case.rank, way=way)
    for slot in range(1, case.adapters + 1):
        bank = bank.put(slot, adapter, donate=True)
    if case.dora:
        _, trainable, frozen, _ = adapt(dataclasses.replace(case, method="dora"))
        bank = bank.put(case.adapters, (trainable, frozen), donate=True)
    return bank.trimmed(range(1, case.adapters)) if case.dora == "gone" else bank


def put_work(case: Case) -> Made:
    """An adapter put into a slot of a full bank in place of another, from memory or its file."""
    adapted, trainable, frozen, _ = adapt(case)
    adapter = trainable, frozen
    bank, numbers = filled(adapted.forward, adapter, case), itertools.count()
    home = tempfile.TemporaryDirectory()
    path = lj.save_adapter(Path(home.name) / "adapter.npz", *adapter)
    held, digests = bank.prepare(adapter), lj.base_digests(frozen)

    def read() -> Any:
        assert home.name  # the folder stays as long as the work
        return lj.load_adapter(path, *adapter, digests=digests)[:2]

    def work() -> None:
        nonlocal bank
        slot = 1 + next(numbers) % case.adapters
        bank = bank.put(slot, read() if case.from_disk else held, donate=True)
        jax.block_until_ready(bank)

    work()
    with compilations() as counted:
        work()
    return Made(work, {"file_bytes": path.stat().st_size, "compilations": float(len(counted))})


def texts_work(case: Case) -> Made:
    """Texts of many clients, each with an adapter of its own, by continuous batching.

    A client asks for one text, and a lane that has no client is computed all the same.
    """
    forward, _ = cached_step(models.load(case))  # type: ignore[arg-type]
    _, *adapter, _ = adapt(case)
    bank = filled(forward, tuple(adapter), case)
    scheduler = Scheduler(bank, lanes=case.lanes, capacity=case.tokens + case.written)
    prompts = np.asarray(models.batch(case)["input_ids"])

    def work() -> int:
        for slot, prompt in zip(models.slots_of(case).tolist(), prompts, strict=True):
            scheduler.submit(Request(slot, prompt.tolist(), max_new_tokens=case.written))
        tokens = 0
        while scheduler.waiting or scheduler.active:
            tokens += sum(event.token is not None for event in scheduler.step())
        return tokens

    work()
    with compilations() as counted:
        tokens = work()
    return Made(work, {"tokens": float(tokens), "compilations": float(len(counted))})


WORDS = "a an the film of is not with and for that very this story about which plot was dull great"
LENGTH = 20
"""Words of a text on average, about as many as of a pair in MNLI."""
HELD_OUT = 100


def data_work(case: Case) -> Made:
    """What a run does with its examples before it trains: read, tokenise and plan batches."""
    home = tempfile.TemporaryDirectory()
    path = Path(home.name) / "examples.tsv"
    write(path, case.examples + HELD_OUT)
    tokenizer, files = data.load_tokenizer(locate("minilm")), dict(zip(NAMES, COLUMNS, strict=True))

    def work() -> int:
        assert home.name  # the folder stays as long as the work
        given = {"train": str(path), **files}
        task = data.load_task("random", "files", files=given, validation=HELD_OUT)
        encoded = data.encode(tokenizer, task.train, 128)
        boundaries = data.bucket_boundaries(encoded.lengths, 6, limit=128)
        plan = data.plan_epoch(encoded.lengths, case.rows, boundaries, seed=0, epoch=0)
        return sum(len(batch.indices) for batch in plan)

    return Made(work, {"file_bytes": path.stat().st_size})


NAMES, COLUMNS = ("text", "label"), ("sentence", "class")


def write(path: Path, rows: int) -> None:
    """Write a file of random texts with one of two labels each."""
    rng, words = np.random.default_rng(0), np.array(WORDS.split())
    with path.open("w", encoding="utf-8") as file:
        print(*COLUMNS, sep="\t", file=file)
        for number in range(rows):
            text = " ".join(rng.choice(words, rng.integers(LENGTH // 2, 3 * LENGTH // 2)))
            # Numbered: texts of a real data set differ.
            print(f"{number} {text}", "ab"[number % 2], sep="\t", file=file)
