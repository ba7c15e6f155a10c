"""A training step of this project's."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import lora_jax as lj
import variants
from configs.settings import DecoderSettings
from experiments.benchmarks import models
from experiments.benchmarks.cases import BUDGET, STEPS, Case
from experiments.benchmarks.contenders.made import Made, stepping
from experiments.setup.forward_pass import predictor, separated
from experiments.setup.from_config import variants_of
from experiments.setup.validate import LAYERS
from lora_jax.training import optim
from lora_jax.training.step import Loss, Predict, Step, TrainState, make_train_step


def make(case: Case) -> Made:
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
