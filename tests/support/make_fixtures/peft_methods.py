"""Writes tests/fixtures/peft_*: what Hugging Face PEFT computes with methods beside LoRA.

Needs torch, transformers and PEFT:

    PYTHONPATH=tests python -m make_fixtures.peft_methods

Each `peft_<case>.npz` holds the groups that `peft_lora` describes, of the same network, and

    start/     the adapter as PEFT starts it (param/ is away from there)
    fixed/     what a method adds and does not train: VeRA's projections, LoRA-FA's A, places
    residual/  the weights that PEFT has changed before training starts (PiSSA, OLoRA)
    y_base     what comes out with PEFT's adapters disabled

`peft_<case>_dropout.npz` are of one pass in training mode, with kept/, the entries that PEFT's
dropout let through by module; peft_methods.json has statistics of random starts.

The upper half of the file needs NumPy only, and the tests use it.
"""

import contextlib
import json
import warnings
from unittest import mock

import numpy as np
from make_fixtures.peft_lora import (
    FIXTURES,
    LINEAR,
    RATE,
    grouped,
    measure,
    net,
    numpy_of,
    outputs,
    random_example,
    randomise,
)

MATRICES = ["conv", *LINEAR]
ALL = ["embed", *MATRICES]
EVEN = 206
"""The seed of a network whose matrices are 6 x 4, 4 x 8 and 8 x 10."""
PATTERNS = {"rank_pattern": {"l1": 4, "e.*": 1}, "alpha_pattern": {"l.": 7, "conv": 2}}

# method -> what its config in PEFT is and says
METHODS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "lora_fa": {},
    "lora_plus": {},
    "riemannian": {},
    "vera": {"peft_type": "VERA"},
    "ia3": {"peft_type": "IA3"},
    "hira": {"peft_type": "HIRA"},
    "miss": {"peft_type": "MISS"},
    "oft": {"peft_type": "OFT", "use_cayley_neumann": False},
    "loha": {"peft_type": "LOHA"},
    "lokr": {"peft_type": "LOKR"},
    "hra": {"peft_type": "HRA"},
    "fourierft": {"peft_type": "FOURIERFT", "init_weights": True},
    "randlora": {"peft_type": "RANDLORA"},
    "shira": {"peft_type": "SHIRA"},
    "delora": {"peft_type": "DELORA"},
    "gralora": {"peft_type": "GRALORA"},
    "c3a": {"peft_type": "C3A", "init_weights": True},
    "road": {"peft_type": "ROAD"},
    "boft": {"peft_type": "BOFT", "boft_block_size": 2, "boft_n_butterfly_factor": 2},
    "vblora": {"peft_type": "VBLORA"},
    "adalora": {"peft_type": "ADALORA", "target_r": 1, "total_step": 100, "tinit": 1, "tfinal": 1},
}

# name -> a method, PEFT's settings, its `optimiser`, if any, and a `seed` for sizes that suit it;
# otherwise the seed is 20 and the number
CASES = {
    "dora": {"method": "dora", "r": 3, "lora_alpha": 8, "target_modules": LINEAR},
    "dora_everywhere": {
        "method": "dora",
        **{"r": 2, "lora_alpha": 3, "target_modules": ALL, "use_rslora": True, **PATTERNS},
    },
    "dora_pissa": {
        "method": "dora",
        **{"r": 2, "lora_alpha": 6, "target_modules": LINEAR, "init_lora_weights": "pissa"},
    },
    "pissa": {"method": "pissa", "r": 3, "lora_alpha": 3, "target_modules": LINEAR},
    "pissa_everywhere": {
        "method": "pissa",
        **{"r": 2, "lora_alpha": 5, "target_modules": MATRICES, "use_rslora": True, **PATTERNS},
    },
    "pissa_fast": {
        "method": "pissa",
        **{"r": 2, "lora_alpha": 4, "target_modules": LINEAR, "init_lora_weights": "pissa_niter_4"},
    },
    "olora": {"method": "olora", "r": 3, "lora_alpha": 2, "target_modules": LINEAR, **PATTERNS},
    "lora_fa": {"method": "lora_fa", "r": 3, "lora_alpha": 4, "target_modules": ALL},
    "lora_plus_sgd": {
        "method": "lora_plus",
        **{"r": 3, "lora_alpha": 4, "target_modules": MATRICES},
        "optimiser": {"name": "SGD", "ratio": 4.0},
    },
    "lora_plus_adamw": {
        "method": "lora_plus",
        **{"r": 2, "lora_alpha": 3, "target_modules": LINEAR},
        "optimiser": {"name": "AdamW", "ratio": 16.0, "decay": 0.1},
    },
    "lora_plus_dora": {
        "method": "dora",
        **{"r": 2, "lora_alpha": 3, "target_modules": LINEAR},
        "optimiser": {"name": "SGD", "ratio": 3.0},
    },
    "lora_plus_embedding": {
        "method": "lora_plus",
        **{"r": 2, "lora_alpha": 3, "target_modules": ["embed", "l1"]},
        "optimiser": {"name": "SGD", "ratio": 3.0},
    },
    "vera": {"method": "vera", "r": 5, "target_modules": LINEAR},
    "vera_everywhere": {"method": "vera", "r": 13, "target_modules": MATRICES},
    "ia3": {"method": "ia3", "target_modules": MATRICES, "feedforward_modules": ["conv", "l1"]},
    "ia3_bias": {"method": "ia3", "target_modules": LINEAR, "feedforward_modules": ["l1"]},
    "hira": {"method": "hira", "r": 3, "target_modules": LINEAR},
    "hira_everywhere": {"method": "hira", "r": 2, "target_modules": ALL},
    "adalora": {"method": "adalora", "init_r": 3, "lora_alpha": 8, "target_modules": MATRICES},
    "miss": {"method": "miss", "r": 2, "target_modules": LINEAR},  # of 5 and of 4 inputs
    "loha": {"method": "loha", "r": 2, "alpha": 4, "target_modules": LINEAR},
    "oft": {"method": "oft", "oft_block_size": 2, "target_modules": LINEAR},
    "lokr": {"method": "lokr", "r": 1, "alpha": 3, "target_modules": LINEAR},
    "lokr_both": {
        "method": "lokr",
        **{"r": 1, "alpha": 5, "target_modules": LINEAR},
        **{"decompose_both": True, "decompose_factor": 8},
    },
    "hra": {"method": "hra", "r": 4, "target_modules": LINEAR},
    "fourierft": {
        "method": "fourierft",
        **{"n_frequency": 9, "scaling": 20.0, "target_modules": LINEAR},
    },
    "randlora": {
        "method": "randlora",  # of two terms each
        **{"r": 3, "randlora_alpha": 2, "target_modules": LINEAR},
    },
    "shira": {"method": "shira", "r": 1, "target_modules": LINEAR},
    "delora": {"method": "delora", "r": 3, "delora_lambda": 5.0, "target_modules": LINEAR},
    "riemannian": {
        "method": "riemannian",
        **{"r": 3, "lora_alpha": 4, "target_modules": MATRICES},
        "optimiser": {"name": "SGD", "damping": 0.05},
    },
    "gralora": {
        "method": "gralora",
        **{"r": 4, "alpha": 6, "gralora_k": 2, "target_modules": MATRICES, "seed": EVEN},
    },
    "c3a": {
        "method": "c3a",
        **{"block_size": 2, "block_size_pattern": {"l1": 4}},
        **{"target_modules": LINEAR, "seed": EVEN},
    },
    "road": {"method": "road", "group_size": 2, "target_modules": LINEAR, "seed": EVEN},
    "road_4": {
        "method": "road",
        **{"variant": "road_4", "group_size": 4, "target_modules": ["l1"], "seed": EVEN},
    },
    "boft": {"method": "boft", "target_modules": LINEAR, "seed": EVEN},
    "boft_3": {
        "method": "boft",
        **{"boft_n_butterfly_factor": 3, "target_modules": ["l2"], "seed": EVEN},
    },
    "vblora": {
        "method": "vblora",
        **{"r": 3, "num_vectors": 6, "vector_length": 2, "topk": 3},
        **{"target_modules": MATRICES, "seed": EVEN},
    },
}

_DROPOUT = {"r": 3, "target_modules": LINEAR}
DROPOUT_CASES = {
    "lora": {"method": "lora", **_DROPOUT, "lora_alpha": 4, "lora_dropout": 0.25},
    "dora": {"method": "dora", **_DROPOUT, "lora_alpha": 4, "lora_dropout": 0.5},
    "vera": {"method": "vera", **_DROPOUT, "vera_dropout": 0.3},
    "hira": {"method": "hira", **_DROPOUT, "hira_dropout": 0.4},
    "delora": {"method": "delora", **_DROPOUT, "delora_lambda": 5.0, "module_dropout": 0.4},
    "gralora": {
        "method": "gralora",
        **{"r": 4, "alpha": 6, "target_modules": LINEAR, "gralora_dropout": 0.3, "seed": EVEN},
    },
    "vblora": {
        "method": "vblora",
        **{"r": 2, "num_vectors": 5, "vector_length": 2, "topk": 2},
        **{"target_modules": LINEAR, "vblora_dropout": 0.3, "seed": EVEN},
    },
}

ORTHOGONAL_DRAWS = [(300, 200, 8), (64, 500, 4), (1000, 310, 16)]
"""(in, out) and ranks of which to draw orthogonal starts."""


def takes_start(config):
    """Whether the adapter starts from the weight, which PEFT then changes (PiSSA, OLoRA)."""
    start = {**METHODS[config["method"]], **config}.get("init_lora_weights")
    return isinstance(start, str) and start.startswith(("pissa", "olora"))


def seed_of(case):
    return CASES[case].get("seed", 20 + list(CASES).index(case))


def wrap(model, config, seed, **options):
    """The model under PEFT, and the tensors of the groups that only these fixtures have.

    PEFT takes starts from float32 weights only: these models are float32 until they are adapted.
    """
    import peft
    import torch

    if takes_start(config):
        model = model.float()
    base = {name: x.double().clone() for name, x in model.state_dict().items()}
    settings = {k: v for k, v in config.items() if k not in ("method", "optimiser", "seed")}
    settings = {"peft_type": "LORA", **METHODS[config["method"]], **settings}
    torch.manual_seed(2000 + seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fan_in_fan_out, and of AdaLoRA's unused r
        wrapped = peft.get_peft_model(model, peft.get_peft_config(settings), **options)
    wrapped = wrapped.double().eval()

    marks = ("lora_", "vera_lambda_", "ia3_l", "hira_", "miss_block", "hada_", "lokr_", "oft_R")
    marks += (
        "hra_u",
        "fourierft_",
        "randlora_",
        "shira_",
        "delora_",
        "c3a_kernel",
        "road_",
        "boft_s",
        "vblora_",
    )
    adapters = {n: p for n, p in wrapped.named_parameters() if any(mark in n for mark in marks)}
    start = numpy_of(adapters)
    residual = {}
    for name, tensor in wrapped.state_dict().items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if plain in base and not torch.equal(tensor, base[plain]):
            residual[plain] = tensor
    randomise(adapters, seed)
    shared = [f"base_model.{m}_{letter}.default" for m in ("vera", "randlora") for letter in "AB"]
    fixed = {n: x for n, x in wrapped.state_dict().items() if n in shared}
    for name, layer in wrapped.named_modules():
        for method, places in (("fourierft", "indices"), ("shira", "shira_indices")):
            if config["method"] == method and hasattr(layer, places):  # (out, in) in torch
                columns, rows = getattr(layer, places)["default"]
                fixed[f"{name}.{method}_places"] = torch.stack([rows, columns])
    if config["method"] == "lora_fa":
        fixed |= {n: p.requires_grad_(False) for n, p in adapters.items() if "_A." in n}
    adapters = {n: p for n, p in adapters.items() if n not in fixed}
    groups = {"base0": numpy_of(base), "start": start, "fixed": numpy_of(fixed)}
    return wrapped, adapters, groups | {"residual": numpy_of(residual)}


def optimiser_of(wrapped, config):
    """PEFT's for LoRA+ or Riemannian LoRA, if the case has one."""
    import torch
    from peft.optimizers import create_loraplus_optimizer, create_riemannian_optimizer

    if "optimiser" not in config:
        return None
    settings = config["optimiser"]
    given = wrapped, getattr(torch.optim, settings["name"])
    if "damping" in settings:
        options = {"reg": settings["damping"], "weight_decay": settings.get("decay", 0.0)}
        return create_riemannian_optimizer(*given, lr=RATE, **options)
    return create_loraplus_optimizer(
        *given,
        lr=RATE,
        loraplus_lr_ratio=settings["ratio"],
        loraplus_weight_decay=settings.get("decay", 0.0),
    )


def run(model, config, seed, inputs, loss_of):
    """Everything that a fixture holds but for its inputs; `loss_of` maps an output to a loss."""
    import torch
    from peft.tuners.boft import layer as boft

    with mock.patch.object(boft, "_FBD_CUDA", BlocksInTorch):
        wrapped, adapters, groups = wrap(model, config, seed)
        with torch.no_grad(), wrapped.disable_adapter():
            y_base = outputs(wrapped, inputs).numpy()
        optimiser = optimiser_of(wrapped, config)
        with float64_where_peft_has_float32(config):
            arrays = measure(wrapped, adapters, inputs, loss_of, optimiser)
    return {**grouped(**groups), "y_base": y_base, **arrays}


class BlocksInTorch:
    """In the place of PEFT's extension for CUDA, without which BOFT has one factor alone."""

    @staticmethod
    def forward(blocks):
        """(factors, blocks, size, size) as matrices, (factors, in, in)."""
        import torch

        return [torch.stack([torch.block_diag(*each) for each in blocks])]

    @staticmethod
    def backward(slope, blocks):
        factors, number, size, _ = blocks.shape
        parts = slope.reshape(factors, number, size, number, size)
        return [parts.diagonal(dim1=1, dim2=3).movedim(-1, 1)]


@contextlib.contextmanager
def float64_where_peft_has_float32(config):
    """FourierFT and C3A transform in float32, which would hide errors; here, in float64."""
    import torch

    if config["method"] == "c3a":
        with mock.patch.object(torch, "float32", torch.float64):
            yield
        return
    if config["method"] != "fourierft":
        yield
        return
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def example(seed):
    """The network, its input, the loss of an output, and both inputs as a fixture has them."""
    import torch

    ids, t = random_example(seed)
    wanted = torch.tensor(t)
    arrays = {"ids": ids.astype(np.int32), "t": t}
    return net(seed), [torch.tensor(ids)], lambda y: ((y - wanted) ** 2).mean(), arrays


def run_net(config, seed, biases=True):
    """A fixture's arrays, inputs included; without biases there are zeros in their place."""
    import torch

    model, inputs, loss_of, arrays = example(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and not biases:
                parameter.zero_()
    return {**arrays, **run(model, config, seed, inputs, loss_of)}


def run_dropout(config, seed):
    """One pass in training mode, and the entries that dropout kept: kept/<module>."""
    from torch import nn

    model, inputs, loss_of, arrays = example(seed)
    wrapped, adapters, groups = wrap(model, config, seed)
    kept = {}

    def listen(module):
        inputs = wrapped.get_submodule(f"base_model.model.{module}").in_features

        def hook(layer, args, out):
            kept[module] = (out != 0).numpy()[..., :inputs]  # MiSS fills its input up with zeros

        return hook

    for name, layer in wrapped.named_modules():
        if isinstance(layer, nn.Dropout):
            module = name.removeprefix("base_model.model.").split(".")[0]
            layer.register_forward_hook(listen(module))
    y = outputs(wrapped.train(), inputs)
    loss = loss_of(y)
    loss.backward()
    gradients = numpy_of({name: p.grad for name, p in adapters.items()})
    arrays |= {"y": y.detach().numpy(), "loss": loss.detach().numpy()}
    return arrays | grouped(**groups, param=numpy_of(adapters), grad=gradients, kept=kept)


def orthogonal_start(inputs, outputs, rank, seed=0):
    """A and B as PEFT draws them for a linear layer."""
    import peft
    import torch
    from torch import nn

    torch.manual_seed(seed)
    model = nn.ModuleDict({"w": nn.Linear(inputs, outputs)})
    config = peft.LoraConfig(r=rank, target_modules=["w"], init_lora_weights="orthogonal")
    layer = peft.inject_adapter_in_model(config, model)["w"]
    return numpy_of({"a": layer.lora_A["default"].weight, "b": layer.lora_B["default"].weight.T})


def statistics(a, b):
    """Of a start (A, B): standard deviations, the ranks, and the largest entry of A^T B."""
    return {
        **{f"std_{name}": float(x.std()) for name, x in (("a", a), ("b", b))},
        **{f"rank_{n}": int(np.linalg.matrix_rank(x, 1e-4)) for n, x in (("a", a), ("b", b))},
        "product": float(np.abs(a.T @ b).max()),
    }


def main():
    for case, config in CASES.items():
        arrays = run_net(config, seed_of(case), biases=case != "ia3")
        np.savez_compressed(FIXTURES / f"peft_{case}.npz", **arrays)
    for number, (case, config) in enumerate(DROPOUT_CASES.items(), start=63):
        arrays = run_dropout(config, config.get("seed", number))
        np.savez_compressed(FIXTURES / f"peft_{case}_dropout.npz", **arrays)
    drawn = [
        {"in": i, "out": o, "rank": r, **statistics(**orthogonal_start(i, o, r))}
        for i, o, r in ORTHOGONAL_DRAWS
    ]
    (FIXTURES / "peft_methods.json").write_text(json.dumps({"orthogonal": drawn}, indent=1) + "\n")


if __name__ == "__main__":
    main()
