"""Writes tests/fixtures/peft_*: what Hugging Face PEFT computes with LoRA, in float64.

Needs torch, transformers and PEFT:

    PYTHONPATH=tests python -m make_fixtures.peft_lora

Each `peft_<case>.npz` holds, under torch's own names:

    base0/    the model before PEFT touches it
    param/    the adapter's tensors, none of them zero
    grad/     the gradient of the loss with respect to each
    merged/   the model after `merge_and_unload`
    ckpt/     the adapter as PEFT saves it
    trained/  the adapter after STEPS steps of SGD with learning rate RATE
    ids, t    the input and the wanted output; y, loss, y_merged: what comes out

The upper half of the file needs NumPy only, and the tests use it.
"""

import json
import warnings
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parents[2] / "fixtures"
STEPS, RATE = 20, 0.01
"""Slow enough that both sides stay together: faster, training diverges and amplifies rounding."""
LINEAR = ["l1", "l2"]

# name -> LoraConfig; the fixture's seed is its number
CASES = {
    "rank1": {"r": 1, "lora_alpha": 1, "target_modules": LINEAR},
    "lora": {"r": 3, "lora_alpha": 8, "target_modules": LINEAR, "init_lora_weights": "gaussian"},
    "rslora": {"r": 4, "lora_alpha": 3, "target_modules": LINEAR, "use_rslora": True},
    "patterns": {
        "r": 2,
        "lora_alpha": 5,
        "target_modules": ["conv", *LINEAR],
        "rank_pattern": {"l1": 4, "c.*": 1},
        "alpha_pattern": {"l.": 7, "conv": 2},
        "use_rslora": True,
    },
    "conv1d": {"r": 3, "lora_alpha": 6, "target_modules": ["conv"], "fan_in_fan_out": True},
    "embedding": {"r": 2, "lora_alpha": 3, "target_modules": ["embed"]},
    "everything": {"r": 3, "lora_alpha": 4, "target_modules": ["embed", "conv", *LINEAR]},
}

# initialisation -> the shapes (in, out) and ranks to draw
INITIALIZATIONS = {"kaiming_uniform": True, "gaussian": "gaussian"}
DRAWS = [(300, 20, 8), (64, 500, 4), (1000, 31, 16)]

# The classifiers of which `all-linear` selects the layers.
SELECTED = ["bert", "roberta"]


def sizes_of(seed):
    """(vocabulary, width, width after conv, width after l1, outputs)."""
    return [int(n) for n in np.random.RandomState(seed).randint(4, 12, 5)]


def random_example(seed, batch=3, tokens=4):
    """ids and the wanted output."""
    vocabulary, *_, outputs = sizes_of(seed)
    random = np.random.RandomState(100 + seed)
    ids = random.randint(0, vocabulary, (batch, tokens))
    return ids, random.standard_normal((batch, tokens, outputs))


def net(seed):
    """An embedding, a transformers Conv1D (in, out) and two linear layers, tanh in between."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    vocabulary, width, inner, hidden, outputs = sizes_of(seed)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(vocabulary, width)
            self.conv = Conv1D(inner, width)
            self.l1 = nn.Linear(inner, hidden)
            self.l2 = nn.Linear(hidden, outputs)

        def forward(self, ids):
            x = torch.tanh(self.conv(self.embed(ids)))
            return self.l2(torch.tanh(self.l1(x)))

    torch.manual_seed(seed)
    model = Net().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def adapted(model, config, seed, **options):
    """The model under PEFT, its adapters away from zero, and the adapters' parameters by name."""
    import peft

    with warnings.catch_warnings():
        # PEFT sets fan_in_fan_out by itself for each kind of layer, and says so.
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**config), **options).double().eval()
    adapters = {name: p for name, p in wrapped.named_parameters() if "lora_" in name}
    randomise(adapters, seed)
    return wrapped, adapters


def randomise(adapters, seed):
    import torch

    torch.manual_seed(1000 + seed)
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.normal_(std=0.5)


def numpy_of(tensors):
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def grouped(**groups):
    """{group/name: array} from {group: {name: tensor or array}}."""
    return {f"{group}/{name}": x for group, each in groups.items() for name, x in each.items()}


def run(model, config, seed, inputs, loss_of):
    """Everything that a fixture holds but for its inputs; `loss_of` maps an output to a loss."""
    arrays = grouped(base0=numpy_of(model.state_dict()))
    return arrays | measure(*adapted(model, config, seed), inputs, loss_of)


def outputs(model, inputs):
    y = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return getattr(y, "logits", y)


def measure(wrapped, adapters, inputs, loss_of, optimiser=None):
    """What comes out, gradients, training (by plain descent unless told) and what is merged."""
    import peft
    import torch

    saved = numpy_of(peft.get_peft_model_state_dict(wrapped))
    started = numpy_of(adapters)

    def step():
        wrapped.zero_grad()
        y = outputs(wrapped, inputs)
        loss = loss_of(y)
        loss.backward()
        return y, loss

    y, loss = step()
    arrays = {"y": y.detach().numpy(), "loss": loss.detach().numpy()}
    gradients = numpy_of({name: p.grad for name, p in adapters.items()})
    optimiser = optimiser or torch.optim.SGD(adapters.values(), lr=RATE)
    for _ in range(STEPS):
        step()
        optimiser.step()
    trained = numpy_of(adapters)

    with torch.no_grad():
        for name, parameter in adapters.items():
            parameter.copy_(torch.tensor(started[name]))
        merged = wrapped.merge_and_unload()
        arrays["y_merged"] = outputs(merged, inputs).numpy()
    return arrays | grouped(
        param=started,
        grad=gradients,
        ckpt=saved,
        trained=trained,
        merged=numpy_of(merged.state_dict()),
    )


def run_net(config, seed):
    """A fixture's arrays, inputs included."""
    import torch

    ids, t = random_example(seed)
    wanted = torch.tensor(t)
    arrays = run(net(seed), config, seed, [torch.tensor(ids)], lambda y: ((y - wanted) ** 2).mean())
    return {"ids": ids.astype(np.int32), "t": t, **arrays}


def initial_a(name, inputs, outputs, rank):
    """A as PEFT draws it for a linear layer, and whether B is zero."""
    import peft
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.ModuleDict({"w": nn.Linear(inputs, outputs)})
    config = peft.LoraConfig(r=rank, target_modules=["w"], init_lora_weights=INITIALIZATIONS[name])
    layer = peft.inject_adapter_in_model(config, model)["w"]
    return numpy_of({"a": layer.lora_A["default"].weight, "b": layer.lora_B["default"].weight})


def all_linear(family):
    """The modules of a small classifier that PEFT's `all-linear` adapts."""
    import peft
    from make_fixtures.bert import CASES as BERT_CASES, torch_model

    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS")
    wrapped = peft.get_peft_model(torch_model(*BERT_CASES[family]), config)
    return sorted(wrapped.base_model.targeted_module_names)


def main():
    for seed, (name, config) in enumerate(CASES.items()):
        np.savez_compressed(FIXTURES / f"peft_{name}.npz", **run_net(config, seed))
    starts = []
    for name in INITIALIZATIONS:
        for inputs, outputs, rank in DRAWS:
            drawn = initial_a(name, inputs, outputs, rank)
            starts.append(
                {
                    "initialization": name,
                    "in": inputs,
                    "out": outputs,
                    "rank": rank,
                    "max": float(np.abs(drawn["a"]).max()),
                    "std": float(drawn["a"].std()),
                    "b_is_zero": not drawn["b"].any(),
                }
            )
    facts = {"all_linear": {family: all_linear(family) for family in SELECTED}, "starts": starts}
    (FIXTURES / "peft_facts.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
