"""Writes tests/fixtures/adalora_*: training with PEFT's AdaLoRA, step by step, in float64.

Needs torch and PEFT:

    PYTHONPATH=tests python -m make_fixtures.adalora

Each `adalora_<case>.npz` holds, under torch's own names:

    base0/    the model before PEFT touches it
    param/    the adapter's tensors before the first step and after each one: (steps + 1, ...)
    kept/     which triplets of each layer the last choice of ranks kept: (steps, rank)
    merged/   the model after `merge_and_unload`
    x, t      the inputs and the wanted outputs of each step: (steps, batch, width)
    loss      of each step, PEFT's penalty included
    budget    of each step

The upper half of the file needs NumPy only, and the tests use it.
"""

import itertools
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np

FIXTURES = Path(__file__).parents[2] / "fixtures"
RATE = 0.05
"""Of plain gradient descent."""

# name -> AdaLoraConfig; the fixture's seed is its number
CASES = {
    "every_step": {
        **{"init_r": 4, "target_r": 2, "lora_alpha": 8, "orth_reg_weight": 0.5},
        **{"total_step": 20, "tinit": 3, "tfinal": 4, "deltaT": 1},
    },
    "every_other_step": {
        **{"init_r": 5, "target_r": 1, "lora_alpha": 3, "orth_reg_weight": 0.0},
        **{"total_step": 17, "tinit": 0, "tfinal": 0, "deltaT": 2, "beta1": 0.9, "beta2": 0.6},
    },
    "every_third_step": {
        **{"init_r": 3, "target_r": 2, "lora_alpha": 16, "orth_reg_weight": 0.1},
        **{"total_step": 22, "tinit": 2, "tfinal": 6, "deltaT": 3, "beta1": 0.5, "beta2": 0.95},
    },
    "clipped": {
        **{"init_r": 5, "target_r": 2, "lora_alpha": 8, "orth_reg_weight": 0.1},
        **{"total_step": 24, "tinit": 1, "tfinal": 4, "deltaT": 1},
    },
}
CLIPS = {"clipped": 1.5}
"""The greatest norm of the gradient, in cases that have one: ranks scored without would differ."""


def sizes_of(seed):
    """The widths between two or three layers, none below the ranks."""
    return [int(n) for n in np.random.RandomState(seed).randint(5, 9, 3 + seed % 2)]


def random_examples(seed, steps, batch=4):
    """The inputs and wanted outputs of all steps."""
    random, sizes = np.random.RandomState(100 + seed), sizes_of(seed)
    shapes = [(steps, batch, sizes[0]), (steps, batch, sizes[-1])]
    return [random.standard_normal(shape) for shape in shapes]


def net(seed):
    """Linear layers `0`, `1` ..., tanh in between; called with targets it gives its loss."""
    import torch
    from torch import nn

    class Net(nn.ModuleList):
        def forward(self, x, t):
            for layer in self[:-1]:
                x = torch.tanh(layer(x))
            return SimpleNamespace(loss=((self[-1](x) - t) ** 2).mean())

    sizes = sizes_of(seed)
    torch.manual_seed(seed)
    pairs = itertools.pairwise(sizes)
    model = Net(nn.Linear(*pair) for pair in pairs).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def adapted(model, config, seed):
    """The model under PEFT, and its adapters' parameters by name, none of them zero.

    PEFT marks `ranknum`, a part of the scale, as trainable too; it is left as it is.
    """
    import peft
    import torch

    modules = [name for name, _ in model.named_children()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = peft.AdaLoraConfig(**config, target_modules=modules)
        wrapped = peft.get_peft_model(model, settings).double()
    torch.manual_seed(1000 + seed)
    adapters = {name: p for name, p in wrapped.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.normal_(std=0.5)
    return wrapped, adapters


def numpy_of(tensors):
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def clip_gradients(parameters, norm):
    """`torch.nn.utils.clip_grad_norm_` without the 1e-6 that it adds to the norm."""
    total = sum(parameter.grad.square().sum() for parameter in parameters) ** 0.5
    for parameter in parameters:
        parameter.grad *= min(1.0, norm / total.item())


def trace(config, seed, clip=None):
    """A fixture's arrays."""
    import torch

    steps = config["total_step"]
    xs, ts = random_examples(seed, steps)
    model = net(seed)
    arrays = {f"base0/{name}": array for name, array in numpy_of(model.state_dict()).items()}
    wrapped, adapters = adapted(model, config, seed)
    optimiser = torch.optim.SGD(adapters.values(), lr=RATE)
    allocator = wrapped.base_model.rankallocator
    params, kept, losses, budgets = [numpy_of(adapters)], [], [], []
    for number, (x, t) in enumerate(zip(xs, ts, strict=True), start=1):
        wrapped.zero_grad()
        # A `PeftModel` without a task type calls the model past PEFT's penalty.
        loss = wrapped.base_model(torch.tensor(x), torch.tensor(t)).loss
        loss.backward()
        if clip is not None:
            clip_gradients(adapters.values(), clip)
        optimiser.step()
        wrapped.base_model.update_and_allocate(number)
        losses.append(loss.item())
        budgets.append(allocator.budget_schedule(number)[0])
        params.append(numpy_of(adapters))
        kept.append(wrapped.peft_config["default"].rank_pattern)
    everything = {name: [True] * config["init_r"] for name in kept[-1]}
    kept = [everything if each is None else each for each in kept]
    arrays |= {f"param/{name}": np.stack([each[name] for each in params]) for name in adapters}
    arrays |= {f"kept/{name}": np.array([each[name] for each in kept]) for name in everything}
    merged = wrapped.merge_and_unload()
    arrays |= {f"merged/{name}": array for name, array in numpy_of(merged.state_dict()).items()}
    return {**arrays, "x": xs, "t": ts, "loss": np.array(losses), "budget": np.array(budgets)}


def main():
    for seed, (name, config) in enumerate(CASES.items()):
        arrays = trace(config, seed, CLIPS.get(name))
        np.savez_compressed(FIXTURES / f"adalora_{name}.npz", **arrays)


if __name__ == "__main__":
    main()
