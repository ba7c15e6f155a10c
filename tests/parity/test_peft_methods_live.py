"""Methods beside LoRA next to PEFT, both running: random settings, whole models, and differences.

Where PEFT differs from the papers or from here, a test names the difference and has both.
"""

import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from make_fixtures.peft_lora import LINEAR
from make_fixtures.peft_methods import (
    ALL,
    MATRICES,
    METHODS,
    orthogonal_start,
    statistics,
    takes_start,
)

import lora_jax as lj
import variants
from lora_jax.methods import initialization
from lora_jax.variant import Base
from variants import lokr
from variants.dora import DoRA
from variants.ia3 import IA3
from variants.lora_fa import LoRAFA
from variants.olora import OLoRA

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from make_fixtures.peft_lora import RATE, net  # noqa: E402
from make_fixtures.peft_methods import optimiser_of, run, run_dropout, run_net, wrap  # noqa: E402
from peft.optimizers import create_lorafa_optimizer  # noqa: E402
from peft.tuners.c3a.utils import BlockCircularConvolution, get_circulant_fast  # noqa: E402
from peft.tuners.lokr.layer import factorization  # noqa: E402
from peft_bert import (  # noqa: E402
    LAYER_KERNELS,
    assert_classifier_agrees,
    layer_patterns,
    random_bert,
)
from peft_net import assert_agrees, to_factors  # noqa: E402
from peft_special import (  # noqa: E402
    assert_agrees_in_training,
    assert_disabling_differs,
    assert_dora_drops_less,
    assert_ia3_scales_biases,
    assert_starts_alike,
    fast_pissa_errors,
    optimiser_errors,
)

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]

SOME = dict.fromkeys(["vera", "ia3", "adalora", "pissa"], MATRICES)
SOME |= dict.fromkeys(["olora", "miss", "loha", "lokr", "oft", "hra"], LINEAR)
SOME |= dict.fromkeys(["fourierft", "randlora", "shira", "delora"], LINEAR)
SOME |= {"gralora": MATRICES, "c3a": LINEAR, "road": LINEAR, "boft": LINEAR}
SOME["vblora"] = MATRICES
"""What PEFT can adapt, where that is not everything."""


def random_config(method, seed):
    random = np.random.RandomState(seed)

    def number(most):
        return int(random.randint(1, most + 1))

    config = {"method": method, "r": number(4)}
    if method in ("rslora", "dora", "pissa", "olora", "lora_fa", "lora_plus", "riemannian"):
        config |= {"lora_alpha": number(6), "use_rslora": bool(random.randint(2))}
    if method == "rslora":
        del config["use_rslora"]  # it is what the method says
    if method == "dora":
        config["init_lora_weights"] = [True, "gaussian", "pissa", "olora"][random.randint(4)]
    if method == "pissa":
        config["init_lora_weights"] = ["pissa", f"pissa_niter_{number(5)}"][random.randint(2)]
    choice = SOME.get(method, LINEAR if takes_start(config) else ALL)
    modules = random.permutation(choice)[: number(len(choice))].tolist()
    config["target_modules"] = modules
    if "lora_alpha" in config:
        config["rank_pattern"] = {m: number(4) for m in modules if random.randint(2)}
        config["alpha_pattern"] = {m: number(8) for m in modules if random.randint(2)}
    if method in ("loha", "lokr"):  # PEFT rounds a scale to float32: these are exact in it
        config |= {"alpha": config["r"] * number(4) / 2}
    if method == "lokr":
        config |= {"decompose_both": bool(random.randint(2)), "decompose_factor": number(9)}
    if method == "oft":
        config |= {"r": 0, "oft_block_size": 2}
    if method == "hra":
        config["r"] = 2 * number(2)
    if method == "fourierft":
        del config["r"]
        config |= {"n_frequency": number(16), "scaling": float(number(40))}
    if method == "randlora":  # one matrix, so that all have as many terms
        config |= {"target_modules": modules[:1], "randlora_alpha": number(4)}
    if method == "shira":
        config["r"] = 1
    if method == "delora":
        config["delora_lambda"] = float(number(6))
    if method == "gralora":
        config |= {"r": 2 * number(2), "alpha": number(8), "gralora_k": number(2)}
    if method == "c3a":
        del config["r"]
        config |= {"block_size": number(2), "block_size_pattern": {}}
    if method == "road":
        del config["r"]
        config |= {"variant": f"road_{2 ** (number(3) - 1)}", "group_size": 2}
    if method == "boft":
        del config["r"]
        config["boft_n_butterfly_factor"] = number(2)
    if method == "vblora":
        config |= {"num_vectors": 4 + number(4), "vector_length": number(2), "topk": number(4)}
    if method == "vera":
        config["r"] = number(16)
    if method == "ia3":
        del config["r"]
        config["feedforward_modules"] = [m for m in modules if random.randint(2)]
    if method == "adalora":
        config |= {"init_r": config.pop("r"), "lora_alpha": number(6)}
    if method in ("lora_plus", "riemannian"):
        optimiser = {"name": ["SGD", "AdamW"][random.randint(2)]}
        lora_plus = method == "lora_plus"
        optimiser |= {"ratio": float(number(16))} if lora_plus else {"damping": 0.1 ** number(4)}
        config["optimiser"] = optimiser | {"decay": 0.1 * int(random.randint(2))}
        config["target_modules"] = [m for m in modules if m != "embed"] or ["l1"]
    return config


# Between them they have each choice of `random_config` with each method, and blocks that divide.
SEEDS = {
    **{"rslora": (0, 6), "dora": (1, 2, 3, 9, 21), "pissa": (0, 1, 7), "olora": (0, 21)},
    **{
        "lora_fa": (1, 7),
        "lora_plus": (0, 1, 6, 13),
        "riemannian": (0, 1),
        "vera": (2,),
        "ia3": (1, 2, 3),
    },
    **{"hira": (12,), "miss": (0, 4), "adalora": (3,)},
    **{"loha": (0, 1), "lokr": (0, 1, 2), "oft": (2,)},
    **{"hra": (0, 1), "fourierft": (0,), "randlora": (0, 1), "shira": (0,), "delora": (0,)},
    **{"gralora": (18, 23), "c3a": (18, 23), "road": (18, 23), "boft": (23,)},
    "vblora": (18, 23),
}
assert SEEDS.keys() == METHODS.keys() - {"lora"}


@pytest.mark.parametrize(("method", "seed"), [(m, s) for m in SEEDS for s in SEEDS[m]])
def test_random_settings(method, seed, x64, standard_promotion):
    config = random_config(method, 100 * seed + sorted(METHODS).index(method))
    arrays = run_net(config, 300 + seed)
    assert_agrees(arrays, config)
    if method in ("lora_plus", "riemannian"):
        assert max(jax.tree.leaves(optimiser_errors(arrays, config))) < 1e-10
    if takes_start(config):
        begun = assert_disabling_differs(arrays, config)
        if "niter" not in str(config.get("init_lora_weights")):
            assert_starts_alike(arrays, *begun)


@pytest.mark.parametrize("seed", range(2))
def test_biases_of_ia3(seed, x64):
    config = random_config("ia3", seed) | {"target_modules": MATRICES, "feedforward_modules": []}
    config["feedforward_modules"] = [MATRICES[seed % 3]]
    assert_ia3_scales_biases(run_net(config, 400 + seed), config | {"biases": False})


DROPOUTS = {"rslora": "lora_dropout", "dora": "lora_dropout", "delora": "module_dropout"}


@pytest.mark.parametrize("method", [*DROPOUTS, "vera", "hira", "miss"])
@pytest.mark.parametrize("seed", range(2))
def test_dropout(seed, method, x64):
    random = np.random.RandomState(seed)
    config = random_config(method, 7 * seed)
    if method == "dora":
        config["init_lora_weights"] = True
    config["target_modules"] = [LINEAR[random.randint(2)]]
    config[DROPOUTS.get(method, f"{method}_dropout")] = round(random.uniform(0.1, 0.6), 2)
    arrays = run_dropout(config, 500 + seed)
    if method == "dora":
        assert_dora_drops_less(arrays, config)
    else:
        assert_agrees_in_training(arrays, config)


QUERY_VALUE = ["layers/attention/query/kernel", "layers/attention/value/kernel"]
OUT = ["layers/attention/output/kernel", "layers/down/kernel"]
# name -> settings beside the method's, our paths
CLASSIFIERS = {
    "dora": ({"lora_alpha": 3, "target_modules": "all-linear"}, LAYER_KERNELS),
    "pissa": ({"lora_alpha": 3, "target_modules": ["query", "value"]}, QUERY_VALUE),
    "olora": ({"lora_alpha": 2, "target_modules": ["query", "value"]}, QUERY_VALUE),
    "lora_fa": ({"lora_alpha": 3, "target_modules": ["query", "value"]}, QUERY_VALUE),
    "vera": ({"target_modules": "all-linear"}, LAYER_KERNELS),
    "ia3": (
        {
            "target_modules": ["key", "value", "output.dense"],
            "feedforward_modules": ["output.dense"],
        },
        ["layers/attention/key/kernel", QUERY_VALUE[1], *OUT],
    ),
    "hira": ({"target_modules": ["query", "value", "word_embeddings"]}, QUERY_VALUE),
    "miss": ({"r": 3, "target_modules": "all-linear"}, LAYER_KERNELS),
    "loha": (
        {"alpha": 6, "target_modules": "all-linear", "rank_pattern": {r"layer\.1\..*": 3}},
        LAYER_KERNELS,
    ),
    "lokr": ({"r": 1, "alpha": 1, "target_modules": "all-linear"}, LAYER_KERNELS),
    "hra": ({"target_modules": "all-linear"}, LAYER_KERNELS),
    "delora": ({"delora_lambda": 3.0, "target_modules": "all-linear"}, LAYER_KERNELS),
    "oft": ({"r": 0, "oft_block_size": 3, "target_modules": "all-linear"}, LAYER_KERNELS),
    "c3a": ({"block_size": 2, "target_modules": "all-linear"}, LAYER_KERNELS),
    "road": ({"variant": "road_2", "group_size": 4, "target_modules": "all-linear"}, LAYER_KERNELS),
    "boft": ({"target_modules": "all-linear"}, LAYER_KERNELS),
    "gralora": ({"r": 4, "alpha": 6, "target_modules": "all-linear"}, LAYER_KERNELS),
    "vblora": (
        {"num_vectors": 6, "vector_length": 2, "topk": 2, "target_modules": "all-linear"},
        LAYER_KERNELS,
    ),
}


# BERT and RoBERTa in turn: a method does not see which. But some need widths of multiples.
OF_THREE, OF_FOUR = 1, 19
WIDTHS = {"oft": OF_THREE, "gralora": OF_FOUR, "c3a": OF_FOUR, "road": OF_FOUR, "boft": OF_FOUR}
WIDTHS["vblora"] = OF_FOUR
CASES = [(WIDTHS.get(method, i % 2), method) for i, method in enumerate(CLASSIFIERS)]


@pytest.mark.parametrize(("seed", "method"), CASES)
def test_whole_models(seed, method, tmp_path, x64):
    """Layers of one stack with ranks that differ, where PEFT's method has a pattern for that."""
    settings, paths = CLASSIFIERS[method]
    bert = random_bert(10 + seed)
    config = {"method": method, **settings}
    if method not in ("ia3", "c3a", "road", "boft"):
        config.setdefault("r", 2)
    if "lora_alpha" in settings:
        config |= layer_patterns(bert)
    if settings["target_modules"] == "all-linear":
        config["target_modules"] = r".*encoder\.layer\..*(query|key|value|dense)"
    if method == "hira":
        paths = [*paths, "embeddings/word/embedding"]
    assert_classifier_agrees(tmp_path, bert, config, paths, run, seed)


# -- differences -----------------------------------------------------------------------------------


def test_pefts_c3a_has_a_wrong_gradient_of_its_input():
    """The difference: it takes the slopes of a block backwards, where that has more than two."""
    random = torch.Generator().manual_seed(0)
    for size in (2, 3, 4):
        draw = functools.partial(torch.randn, dtype=torch.float64, generator=random)
        x, w, slope = draw(5, 2 * size).requires_grad_(), draw(3, 2, size), draw(5, 3, size)
        y, dense = BlockCircularConvolution.apply(x, w), get_circulant_fast(w)
        torch.testing.assert_close(y, x @ dense.T)
        y.backward(slope.flatten(1))
        backwards = slope.flip(-1).roll(1, -1)
        torch.testing.assert_close(x.grad, backwards.flatten(1) @ dense)
        assert torch.allclose(x.grad, slope.flatten(1) @ dense) == (size == 2)


@pytest.mark.parametrize("factor", [-1, 1, 2, 3, 4, 8, 16, 100])
def test_sizes_are_split_as_by_lycoris(factor):
    for size in range(1, 130):
        assert lokr._split(size, factor) == factorization(size, factor)


def one_layer(layer, **settings):
    """A model of one layer under PEFT; the layer is `w`."""
    config = peft.LoraConfig(target_modules=["0"], **settings)
    return peft.get_peft_model(torch.nn.Sequential(layer), config)


def conv1d(inputs, outputs):
    from transformers.pytorch_utils import Conv1D

    return Conv1D(outputs, inputs)


def test_peft_ignores_hiras_rank_pattern():
    """The difference: PEFT looks the rank up and builds the layer with the common one."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6))
    config = peft.HiraConfig(r=2, target_modules=["0", "1"], rank_pattern={"1": 4})
    wrapped = peft.get_peft_model(model, config)
    assert [len(layer.hira_A["default"]) for layer in wrapped.base_model.model] == [2, 2]


def test_peft_takes_olora_of_a_conv1d_from_the_transpose():
    """The difference: PEFT decomposes the stored (in, out), and so changes what the layer does."""
    torch.manual_seed(0)
    layer, x = conv1d(5, 5), torch.randn(3, 5)
    weight, before = layer.weight.detach().numpy().copy(), layer(x).detach()
    wrapped = one_layer(layer, r=2, init_lora_weights="olora", fan_in_fan_out=True)
    assert (wrapped(x) - before).abs().max() > 1e-3

    base = Base(jnp.asarray(weight), "io")
    variant = OLoRA(rank=2)
    factors = variant.init(jax.random.key(0), base)
    np.testing.assert_array_equal(variant.weight(base, factors), weight)
    q, r = np.linalg.qr(weight.T)  # ours is the decomposition of W^T however it is stored
    np.testing.assert_allclose(factors.trainable["a"], r[:2], atol=1e-5)
    np.testing.assert_allclose(factors.trainable["b"], q[:, :2].T, atol=1e-5)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_peft_takes_no_start_from_float64(start):
    """The difference: PEFT refuses float64; fixtures start in float32 and go on in float64."""
    with pytest.raises(TypeError, match=r"float32|Unsupported data type"):
        one_layer(torch.nn.Linear(5, 5).double(), r=2, init_lora_weights=start)


def test_peft_starts_an_embedding_as_plain_lora_whatever_the_initialisation():
    """The difference: there PEFT takes "pissa" for the default without a word."""
    torch.manual_seed(0)
    layer = torch.nn.Embedding(9, 6)
    weight = layer.weight.detach().clone()
    wrapped = one_layer(layer, r=2, init_lora_weights="pissa").base_model.model[0]
    assert torch.equal(wrapped.base_layer.weight, weight)
    assert not wrapped.lora_embedding_A["default"].any()
    base = Base(jnp.asarray(weight.numpy()), "io")
    a, b = initialization.pissa(jax.random.key(0), base, 2, 1.0)
    u, s, v = np.linalg.svd(weight.numpy(), full_matrices=False)
    np.testing.assert_allclose(a.T @ b, (u[:, :2] * s[:2]) @ v[:2], atol=1e-5)


def test_peft_has_no_number_for_dora_where_an_output_has_no_weights():
    """The difference: m = 0 over a norm of 0 is not a number in PEFT, and zero here."""
    layer, x = torch.nn.Linear(5, 4), torch.randn(3, 5)
    with torch.no_grad():
        layer.weight[1] = 0
    weight, bias = (p.detach().numpy().copy() for p in (layer.weight, layer.bias))
    y = one_layer(layer, r=2, use_dora=True)(x).detach()
    assert y.isnan()[:, 1].all() and not y[:, [0, 2, 3]].isnan().any()

    base, variant = Base(jnp.asarray(weight), "oi"), DoRA(rank=2)
    ours = variant.dot(jnp.asarray(x.numpy()), base, variant.init(jax.random.key(0), base))
    np.testing.assert_allclose(ours, x.numpy() @ weight.T, atol=1e-6)
    np.testing.assert_allclose((ours + bias[None])[:, 0], y[:, 0], atol=1e-5)


def test_peft_has_no_ia3_for_embeddings():
    """The difference: PEFT refuses; here it is the same product as anywhere."""
    model = torch.nn.Sequential(torch.nn.Embedding(9, 6))
    with pytest.raises(ValueError, match="not supported"):
        peft.get_peft_model(model, peft.IA3Config(target_modules=["0"], feedforward_modules=[]))
    base = Base(jnp.arange(6.0).reshape(3, 2), "io")
    factors = IA3().init(jax.random.key(0), base)
    factors.trainable["l"] = jnp.array([2.0, 3.0])
    rows = IA3().take(jnp.array([2, 0]), base, factors)
    np.testing.assert_array_equal(rows, [[8.0, 15.0], [0.0, 3.0]])


@pytest.mark.parametrize("layer", [torch.nn.Embedding(9, 6), conv1d(6, 5)], ids=type)
def test_peft_has_miss_for_linear_layers_alone(layer):
    """The difference: PEFT refuses; here it is the same product as anywhere."""
    with pytest.raises(TypeError, match="not supported"):
        peft.get_peft_model(torch.nn.Sequential(layer), peft.MissConfig(r=2, target_modules=["0"]))


def test_rates_of_pefts_lora_plus(x64):
    """The difference: every vector has B's rate in PEFT, and an embedding's factors have 1e-6."""
    settings = {"target_modules": ALL, "bias": "lora_only", "r": 2, "lora_alpha": 2}
    config = {"method": "dora", "optimiser": {"name": "SGD", "ratio": 8.0}, **settings}
    wrapped, _, _ = wrap(net(0), config, 0)
    names = {id(p): name for name, p in wrapped.named_parameters()}
    groups = optimiser_of(wrapped, config).param_groups
    rates = {names[id(p)]: each["lr"] / RATE for each in groups for p in each["params"]}
    assert len(rates) == 4 * 3 + 3  # a, b, m of each, and the biases
    for name, rate in rates.items():
        if "lora_embedding" in name:
            expected = 1e-6 / RATE
        else:
            expected = 8.0 if re.search("lora_B|magnitude|bias", name) else 1.0
        assert rate == pytest.approx(expected), name

    variant = DoRA(rank=2, alpha=2.0, learning_rate_ratio=8.0)
    adapted = lj.adapt(
        lambda params, x: x @ params["w"] + params["bias"][None], variant, "w", "bias"
    )
    params = {"w": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    trainable, frozen = adapted.init(jax.random.key(0), params, jnp.ones((2, 4)))
    tx = adapted.optimizer(optax.sgd(1.0), frozen)
    ones = jax.tree.map(jnp.ones_like, trainable)
    updates, _ = tx.update(ones, tx.init(trainable), trainable)
    means = jax.tree.map(lambda x: float(-x.mean()), updates)
    assert means == {"adapters": {"w": {"a": 1.0, "b": 8.0, "m": 1.0}}, "params": {"bias": 1.0}}


@pytest.mark.parametrize("seed", range(1))
def test_pefts_lora_fa_optimiser_is_another_method(seed, x64):
    """The difference: it turns the gradient of B by (A A^T)^-1; here, as in the paper, it is plain.

    The first step of Adam shows the gradient's signs.
    """
    torch.manual_seed(seed)
    layer, x = torch.nn.Linear(7, 6).double(), torch.randn(5, 7).double()
    weight = layer.weight.detach().numpy().copy()
    wrapped = one_layer(layer, r=4, lora_alpha=4).double()
    optimiser = create_lorafa_optimizer(wrapped, r=4, lora_alpha=4, lr=0.1)
    tensors = {n: p for n, p in wrapped.named_parameters() if "lora_" in n}
    (wrapped(x) ** 2).mean().backward()
    optimiser.step()
    (theirs,) = to_factors({n: p.detach().numpy() for n, p in tensors.items()}).values()

    def forward(params, x):
        return x @ params["w"].T + jnp.asarray(layer.bias.detach().numpy())[None]

    adapted = lj.adapt(forward, LoRAFA(rank=4, alpha=4.0), "w")
    params, inputs = {"w": jnp.asarray(weight)}, jnp.asarray(x.numpy())
    trainable, frozen = adapted.init(jax.random.key(0), params, inputs)
    frozen.constants["w"]["a"] = theirs["a"]  # which has not moved
    slope = jax.grad(lambda trainable: (adapted.apply(trainable, frozen, inputs) ** 2).mean())
    plain = slope(trainable)["adapters"]["w"]["b"]
    turned = jnp.linalg.inv(theirs["a"] @ theirs["a"].T) @ plain
    sure = np.abs(turned) > 0.05 * np.abs(turned).max()  # PEFT turns it in bfloat16
    np.testing.assert_array_equal(np.sign(theirs["b"])[sure], -np.sign(turned)[sure])
    assert (np.sign(turned) != np.sign(plain))[sure].any()


def test_pefts_lora_fa_optimiser_is_lora_pro_with_a_frozen_a(x64, standard_promotion):
    """In float64: else PEFT has bfloat16 there. Its Adam has an epsilon of its own, here zero."""
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(7, 6).double(), torch.randn(5, 7).double()
    weight, bias = (p.detach().numpy().copy() for p in (layer.weight, layer.bias))
    wrapped = one_layer(layer, r=3, lora_alpha=4).double()
    optimiser = create_lorafa_optimizer(wrapped, r=3, lora_alpha=4, lr=0.1)
    optimiser.param_groups[0]["eps"] = 0.0
    tensors = {n: p for n, p in wrapped.named_parameters() if "lora_" in n}
    with mock.patch("peft.optimizers.lorafa.is_bf16_available", return_value=False):
        for _ in range(3):
            optimiser.zero_grad()
            (wrapped(x) ** 2).mean().backward()
            optimiser.step()
    (theirs,) = to_factors({n: p.detach().numpy() for n, p in tensors.items()}).values()

    variant = LoRAFA(rank=3, alpha=4.0, preconditioner="lora_pro", damping=1e-8)
    adapted = lj.adapt(lambda params, x: x @ params["w"].T + bias[None], variant, "w")
    params, inputs = {"w": jnp.asarray(weight)}, jnp.asarray(x.numpy())
    trainable, frozen = adapted.init(jax.random.key(0), params, inputs)
    frozen.constants["w"]["a"] = theirs["a"]  # which has not moved
    tx = adapted.optimizer(optax.adam(0.1, eps=0.0), frozen)
    state = tx.init(trainable)
    slope = jax.grad(lambda trainable: (adapted.apply(trainable, frozen, inputs) ** 2).mean())
    for _ in range(3):
        updates, state = tx.update(slope(trainable), state, trainable)
        trainable = optax.apply_updates(trainable, updates)
    np.testing.assert_allclose(trainable["adapters"]["w"]["b"], theirs["b"], atol=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_pefts_fast_pissa_is_further_from_the_best(seed, x64):
    """The difference: PEFT's randomised SVD follows as many directions as there are ranks."""
    for iterations in (1, 4):
        start = f"pissa_niter_{iterations}"
        config = random_config("pissa", seed) | {
            "r": 2,
            "rank_pattern": {},
            "target_modules": LINEAR,
        }
        config["init_lora_weights"] = start
        for best, ours, theirs in fast_pissa_errors(run_net(config, 600 + seed), config):
            assert best - 1e-9 < ours < best + 1e-9 < theirs


@pytest.mark.parametrize("seed", [1])
def test_orthogonal_starts(seed):
    inputs, outputs, rank = 400, 200, 2 * (seed + 1)
    theirs = statistics(**orthogonal_start(inputs, outputs, rank, seed))
    base = Base(jnp.zeros((inputs, outputs)), "io")
    a, b = initialization.orthogonal(jax.random.key(seed), base, rank, 1.0)
    ours = statistics(np.asarray(a), np.asarray(b))
    for name, size in (("a", inputs), ("b", outputs)):
        assert ours[f"rank_{name}"] == theirs[f"rank_{name}"] == rank // 2
        expected = np.sqrt(1 / 200)  # half the rows of a rotation, over 10
        for each in (ours, theirs):
            assert abs(each[f"std_{name}"] / expected - 1) < 5 / np.sqrt(size * rank / 2)
    assert max(ours["product"], theirs["product"]) < 1e-6
    with pytest.raises(ValueError, match="even"):
        orthogonal_start(inputs, outputs, rank + 1)


@pytest.mark.parametrize("name", [n for n in variants.names() if variants.find(n).peft])
def test_a_file_says_what_its_method_is_in_peft(name):
    """By a class, a class with settings, or a function; an unknown one raises."""
    assert eval(variants.find(name).peft, {**vars(peft), **vars(peft.optimizers)})
