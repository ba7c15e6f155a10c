"""LoRA-GA and EVA next to PEFT's, on one small network and the same data.

PEFT takes both in float32. The sign of a singular vector is free.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_jax as lj
import variants

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from peft.tuners.lora.config import LoraGAConfig  # noqa: E402
from peft.tuners.lora.eva import initialize_lora_eva_weights  # noqa: E402
from peft.tuners.lora.loraga import preprocess_loraga  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]

SIZES = (8, 7, 6)
RANK = 2
KEY = jax.random.key(0)


@pytest.fixture
def problem():
    """A network of two linear layers in PyTorch and here, with a batch."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(*pair, bias=False) for pair in itertools.pairwise(SIZES)]
    net = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1])
    params = {name: p.detach().numpy().copy() for name, p in net.named_parameters()}
    x, y = torch.randn(40, 8) * 2 ** torch.arange(8.0) / 40, torch.randn(40, SIZES[2])
    return net, params, x, y


def forward(params, x):
    return jnp.tanh(x @ params["0.weight"].T) @ params["2.weight"].T


def factors(model, layer):
    own = model.base_model.model[layer]
    pair = (own.lora_A["default"].weight, own.lora_B["default"].weight.T)
    return [each.detach().numpy() for each in pair]


def assert_equal_rows(mine, theirs, atol=2e-4):
    """Equal up to the sign of each row."""
    mine = np.asarray(mine)
    signs = np.sign(np.sum(mine * theirs, axis=1, keepdims=True))
    np.testing.assert_allclose(mine * signs, theirs, rtol=0, atol=atol * np.abs(theirs).max())


def test_lora_ga_starts_along_the_same_directions(problem):
    """The difference: PEFT's A has unit rows, and its B has the singular values as a factor."""
    net, params, x, y = problem
    config = peft.LoraConfig(
        r=RANK, lora_alpha=3, use_rslora=True, target_modules=["0", "2"],
        init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig(),
    )  # fmt: skip

    def train_step():
        net.zero_grad()
        torch.mean((net(x) - y) ** 2).backward()

    preprocess_loraga(net, config, train_step)
    before = net(x).detach().numpy()
    model = peft.get_peft_model(net, config)

    adapted = lj.adapt(forward, variants.make("lora_ga", rank=RANK, alpha=3.0))
    batch, target = jnp.asarray(x.numpy()), jnp.asarray(y.numpy())
    given = {
        "batches": [(batch, target)],
        "loss": lambda model, each: jnp.mean((model(each[0]) - each[1]) ** 2),
    }
    seen = adapted.gather(KEY, params, batch, **given)
    trainable, frozen = adapted.init(KEY, params, batch, seen=seen)
    for layer, size in ((0, SIZES[1]), (2, SIZES[2])):
        name = f"{layer}.weight"
        a, b = factors(model, layer)
        c, values = size**0.25 / 4, np.asarray(seen[name].values[RANK:])
        mine = trainable["adapters"][name]
        assert_equal_rows(mine["a"] / c, a)
        assert_equal_rows(mine["b"] * values[:, None], b)
        np.testing.assert_allclose(frozen.constants[name]["scale"], 3 / RANK**0.5, rtol=1e-6)
    np.testing.assert_allclose(model(x).detach().numpy(), before, atol=1e-5)
    np.testing.assert_allclose(adapted.apply(trainable, frozen, batch), before, atol=1e-5)


@pytest.mark.parametrize("rho, padded", [(1.0, False), (2.0, False), (2.0, True)])
def test_eva_has_the_same_components_ranks_and_scales(rho, padded, problem):
    """Padding, if there is some, is left out by both."""
    net, params, x, _ = problem
    x, lengths = x.reshape(5, 8, 8), torch.tensor([8, 3, 5, 8, 6])
    mask = (torch.arange(8) < lengths[:, None]).int() if padded else torch.ones(5, 8).int()
    config = peft.LoraConfig(
        r=RANK, lora_alpha=3, target_modules=["0", "2"], init_lora_weights="eva",
        eva_config=peft.EvaConfig(rho=rho),
    )  # fmt: skip
    model = peft.get_peft_model(net, config)
    batch = {"x": x, "attention_mask": mask, "input_ids": mask}
    initialize_lora_eva_weights(
        model, [batch], forward_fn=lambda model, each: model(each["x"]), show_progress_bar=False
    )

    start = "eva" if rho == 1 else "eva_rho_2"
    adapted = lj.adapt(forward, variants.make("eva", rank=RANK, alpha=3.0, initialization=start))
    inputs, counts = jnp.asarray(x.numpy()), jnp.asarray(mask.numpy())
    given = {"batches": [(inputs,)], "counts": (lambda _: counts) if padded else None}
    trainable, frozen = adapted.init(KEY, params, inputs, **given)
    ranks = lj.ranks(trainable, frozen)
    assert sum(int(rank) for rank in ranks.values()) == 2 * RANK
    for layer in (0, 2):
        name, own = f"{layer}.weight", model.base_model.model[layer]
        a, b = factors(model, layer)
        assert ranks[name] == len(a) and not b.any()
        assert_equal_rows(trainable["adapters"][name]["a"], a)
        np.testing.assert_allclose(
            frozen.constants[name]["scale"], own.scaling["default"], rtol=1e-6
        )
