"""What a config's run costs, from shapes alone: steps, FLOPs, memory, and hours by a roofline.

The FLOPs are those of a step's products, as it is traced, and the bytes are those that all its
operations move between a device and its memory (`lora_jax.compiled.jaxpr_costs`). A step takes as
long as the slower of the two, each at the stated share of the device's peak. Evaluations,
compilation and reading data are left out.

A step of MiniLM with LoRA of rank 8 on all linear layers, 32 x 48 tokens, has 70.3 GFLOPs and moves
3.83 GB here; XLA counted 69.7 and 3.88 in the program that took 0.41 s on two cores
(experiments/results/bench/train.json, by `make bench ARGS=--suite=train`).
"""

import dataclasses

from configs.settings import RunConfig, TextConfig
from experiments.planning.abstract_step import AbstractStep, batch_of, stays
from experiments.planning.topologies import Accelerator
from experiments.setup.from_config import make_loop
from lora_jax.compiled.jaxpr_costs import product_flops, traffic_bytes, working_bytes
from lora_jax.data.tasks import SPECS

EXAMPLES = {
    # Novikova et al. 2017, arXiv 1706.09254: 42,061 texts to train on.
    "e2e": 42061,
    # Hu et al. 2023, arXiv 2304.01933: the file commonsense_170k.json.
    "commonsense_170k": 170420,
    # Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca: 52K instructions.
    "alpaca": 52002,
    # Yu et al. 2023, arXiv 2309.12284: 395K questions with answers.
    "metamath": 395000,
}
"""The training examples of published data sets without a `TaskSpec`."""


@dataclasses.dataclass(frozen=True)
class StepCost:
    """A training step of one device."""

    flops: float
    memory: float
    """The most bytes that it holds, with weights and the optimiser's state."""
    traffic: float
    """The bytes that it moves between the device and its memory."""
    narrow: bool
    """Whether products are of bfloat16."""

    def seconds(self, device: Accelerator, efficiency: float) -> float:
        """How long a step takes at this share of the device's peaks."""
        peak = device.narrow if self.narrow else device.wide
        return max(self.flops / peak, self.traffic / device.traffic) / efficiency


@dataclasses.dataclass(frozen=True)
class RunCost:
    """A whole run; `steps` is None if the number of its examples is not known."""

    step: StepCost
    steps: int | None

    def hours(self, device: Accelerator, efficiency: float) -> float | None:
        """The hours of a run; None if its number of steps is not known."""
        return self.steps and self.steps * self.step.seconds(device, efficiency) / 3600


def step_cost(config: RunConfig, tokens: int | None = None) -> StepCost:
    """The cost of a config's training step.

    Args:
      tokens: of each row; by default, and at most, those of the config's longest.
    """
    step = AbstractStep.of(config)
    longest = step.batch["input_ids"].shape[1]
    batch = batch_of(config.train.batch_size, min(tokens or longest, longest))
    jaxpr = step.traced(batch).jaxpr.jaxpr
    model = config.model
    dtype = model.products or getattr(model, "compute_dtype", None) or model.dtype
    held = stays(step) + working_bytes(jaxpr)
    return StepCost(product_flops(jaxpr), held, traffic_bytes(jaxpr), dtype == "bfloat16")


def steps_of(config: RunConfig) -> int | None:
    """The number of a run's steps; None if that of its examples is not known."""
    if config.train.max_steps:
        return config.train.max_steps
    data = config.data
    count = examples(data.name, data.train)
    if count is None:
        return None
    # What a run of texts holds out, it does not train on.
    held_out = 0 if data.train or not isinstance(config, TextConfig) else data.validation
    return make_loop(config.train, count - held_out, "").steps


def examples(name: str, train: int = 0) -> int | None:
    """How many examples a run trains on; None if that is not known.

    Args:
      name: of the data, as configs name it.
      train: the number to which the config limits the examples; 0 for all.
    """
    known = SPECS[name].examples if name in SPECS else EXAMPLES.get(name)
    if known is None or not train:
        return train or known
    return min(train, known)
