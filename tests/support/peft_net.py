"""The JAX side of the comparisons with PEFT: its names and settings in ours; what must agree."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from make_fixtures.peft_lora import RATE, STEPS
from make_fixtures.peft_methods import METHODS

import lora_jax as lj
import variants
from variants.hira import HiRA
from variants.ia3 import IA3
from variants.lokr import LoKr
from variants.miss import MiSS
from variants.oft import OFT
from variants.vera import VeRA


def forward(params, ids, tanh=jnp.tanh):
    """The torch `net` of the fixtures, over its own state dict; with NumPy's tanh in NumPy."""
    x = params["embed.weight"][ids]
    x = tanh(x @ params["conv.weight"] + params["conv.bias"][None, None])
    x = tanh(x @ params["l1.weight"].T + params["l1.bias"][None, None])
    return x @ params["l2.weight"].T + params["l2.bias"][None, None]


def variant_of(config, module):
    """The variant that a config of PEFT means for one module (`get_pattern_key` in PEFT).

    Args:
      config: PEFT's settings, and under `method` the name of the variant (LoRA if there is none).
    """

    def setting(name, patterns):
        for pattern, value in config.get(patterns, {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return config[name]

    method = config.get("method", "lora")
    if method == "vera":
        return VeRA(rank=config["r"], dropout=config.get("vera_dropout", 0.0))
    if method == "ia3":
        inputs = any(module.endswith(name) for name in config["feedforward_modules"])
        return IA3(scales="inputs") if inputs else IA3(biases=config.get("biases", True))
    if method == "hira":
        return HiRA(rank=config["r"], dropout=config.get("hira_dropout", 0.0))
    if method == "miss":
        return MiSS(rank=config["r"], dropout=config.get("miss_dropout", 0.0))
    if method in ("hra", "shira"):
        return variants.make(method, rank=config["r"])
    if method == "fourierft":
        settings = {"frequencies": config["n_frequency"], "alpha": config["scaling"]}
        return variants.make("fourierft", **settings)
    if method == "randlora":
        given = {"alpha": float(config["randlora_alpha"])}
        dropout = config.get("randlora_dropout", 0.0)
        return variants.make("randlora", rank=config["r"], dropout=dropout, **given)
    if method == "delora":
        given = {"strength": config["delora_lambda"], "dropout": config.get("module_dropout", 0.0)}
        return variants.make("delora", rank=config["r"], **given)
    if method == "oft":
        return OFT(block_size=config["oft_block_size"])
    if method == "c3a":
        return variants.make("c3a", block_size=setting("block_size", "block_size_pattern"))
    if method == "road":
        per_pair = int(config.get("variant", "road_1").removeprefix("road_"))
        settings = {"per_pair": per_pair, "group_size": config["group_size"], "biases": True}
        return variants.make("road", **settings)
    if method == "boft":
        both = {**METHODS["boft"], **config}
        size, number = both["boft_block_size"], both["boft_n_butterfly_factor"]
        return variants.make("boft", block_size=size, butterfly_factors=number)
    if method == "vblora":
        names = ("num_vectors", "vector_length", "topk")
        given = {name: config[name] for name in names} | {"rank": config["r"]}
        return variants.make("vblora", dropout=config.get("vblora_dropout", 0.0), **given)
    if method == "gralora":
        given = {"alpha": float(config["alpha"]), "blocks": config.get("gralora_k", 2)}
        given["dropout"] = config.get("gralora_dropout", 0.0)
        return variants.make("gralora", rank=config["r"], **given)
    if method in ("loha", "lokr"):
        both = {
            "rank": setting("r", "rank_pattern"),
            "alpha": float(setting("alpha", "alpha_pattern")),
        }
        if method == "loha":
            return variants.make("loha", **both)
        factor, decompose_both = config.get("decompose_factor", -1), config.get("decompose_both")
        return LoKr(factor=factor, decompose_both=bool(decompose_both), **both)
    settings = {
        "rank": config["init_r"] if method == "adalora" else setting("r", "rank_pattern"),
        "alpha": float(setting("lora_alpha", "alpha_pattern")),
        "dropout": config.get("lora_dropout", 0.0),
    }
    if method == "adalora":  # all ranks stay, so that nothing has to be pruned
        settings |= {"mode": "reference", "target_rank": config["init_r"]}
    if method == "riemannian":
        settings["damping"] = config["optimiser"]["damping"]
    if method == "lora_plus":
        settings["learning_rate_ratio"] = config["optimiser"]["ratio"]
    if config.get("use_rslora"):
        settings["scale"] = "alpha/sqrt(rank)"
    if isinstance(config.get("init_lora_weights"), str):
        settings["initialization"] = config["init_lora_weights"]
    return variants.make(method, **settings)


def adapt(config):
    modules = config["target_modules"]
    targets = {re.escape(f"{module}.weight"): variant_of(config, module) for module in modules}
    return lj.adapt(forward, targets=targets)


_FACTOR = re.compile(
    r"base_model\.model\.(.+?)\.((?:lora|hira|vera|ia3|miss|hada|lokr|oft|hra|fourierft|randlora"
    r"|shira|delora|gralora|c3a|road|boft|vblora)_\w+?)"
    r"(?:\.default)?(?:\.weight)?"
)
BANK = ".vblora_vector_bank"
_VECTORS = {"magnitude_vector": "m", "lambda_b": "b", "lambda_d": "d", "l": "l", "E": "e", "s": "s"}
_AS_THEY_ARE = {"miss_block": "d", "oft_R": "q", "hada_w1_b": "a", "hada_w2_b": "c"}
_AS_THEY_ARE |= {"lokr_w1_b": "ca", "lokr_w2_b": "a", "fourierft_spectrum": "c"}
_AS_THEY_ARE |= {"c3a_kernel": "w"}
_AS_THEY_ARE |= {"shira_weight": "v", "delora_lambda": "lambda", "randlora_gamma": "gamma"}
_TRANSPOSED = {"hada_w1_a": "b", "hada_w2_a": "d", "lokr_w1": "c", "lokr_w2": "d"}
_TRANSPOSED |= {"lokr_w1_a": "cb", "lokr_w2_a": "b", "hra_u": "u", "randlora_lambda": "lambda"}


def _below(matrices):
    """BOFT's q: minus the skew-symmetric parts, below the diagonal, by columns."""
    columns, rows = np.triu_indices(matrices.shape[-1], 1)
    return (matrices.swapaxes(-1, -2) - matrices)[..., rows, columns] / 2


_RESHAPED = {  # blocks of A (k, in / k, rank), and of B (k, rank, out / k)
    "vblora_logits_A": ("a", lambda x: x),
    "vblora_logits_B": ("b", lambda x: x.swapaxes(0, 1)),
    "gralora_A": ("a", lambda x: x.transpose(2, 0, 1).reshape(x.shape[2], -1)),
    "boft_R": ("q", _below),
    "gralora_B": ("b", lambda x: x.transpose(1, 0, 2).reshape(x.shape[1], -1)),
}


def to_factors(tensors):
    """{weight: {a, b, m ...}} from PEFT's {..lora_A..: (rank, in), ..lora_B..: (out, rank) ...}.

    Without the bank that VB-LoRA's matrices share.
    """
    adapters = {}
    for name, tensor in tensors.items():
        if BANK in name:
            continue
        module, whole = _FACTOR.fullmatch(name).groups()
        kind = whole.split("_", 1)[1].removeprefix("embedding_")
        if whole in _RESHAPED:
            ours, of = _RESHAPED[whole]
            factor = of(tensor)
        elif whole in _AS_THEY_ARE:
            ours, factor = _AS_THEY_ARE[whole], tensor
        elif whole in _TRANSPOSED:
            ours, factor = _TRANSPOSED[whole], tensor.T
        elif kind in _VECTORS:
            ours, factor = _VECTORS[kind], tensor.ravel()
        else:
            ours, factor = kind.lower(), tensor.T if kind == "B" else tensor
        adapters.setdefault(f"{module}.weight", {})[ours] = jnp.asarray(factor)
    return adapters


def shared_of(tensors):
    """What trains and is shared, among PEFT's tensors, as a part of our trainables."""
    banks = [jnp.asarray(x) for name, x in tensors.items() if BANK in name]
    return {"shared": {"0": {"bank": banks[0]}}} if banks else {}


def trainable_of(tensors):
    return {"adapters": to_factors(tensors), "params": {}, **shared_of(tensors)}


def slopes_of(gradient, config):
    """Gradients as PEFT's are: where it trains b^2 numbers for BOFT's q, half of what they do."""
    if config.get("method") != "boft":
        return gradient
    halved = {path: {**each, "q": each["q"] / 2} for path, each in gradient["adapters"].items()}
    return {**gradient, "adapters": halved}


def group(arrays, name):
    return {
        key.removeprefix(f"{name}/"): value
        for key, value in arrays.items()
        if key.startswith(f"{name}/")
    }


def sgd(gradient, trainable):
    """Plain gradient descent, as in the fixtures."""
    move = jax.jit(partial(jax.tree.map, lambda x, g: x - RATE * g))
    for _ in range(STEPS):
        trainable = move(trainable, gradient(trainable))
    return trainable


def assert_trees_close(got, expected, atol):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for path, value in jax.tree_util.tree_leaves_with_path(expected):
        mine = got
        for key in path:
            mine = mine[key.key]
        np.testing.assert_allclose(mine, value, atol=atol, rtol=0, err_msg=str(path))


def base_of(arrays, config):
    """The weights before PEFT, to the last digit of what it trains from.

    PEFT rounds the residual of PiSSA and OLoRA to float32. So the weight is the sum of both parts,
    which is the first one but for that rounding.
    """
    base = group(arrays, "base0")
    for name, left in group(arrays, "residual").items():
        module = name.removesuffix(".weight")
        start = to_factors(group(arrays, "start"))[name]
        a, b = np.asarray(start["a"]), np.asarray(start["b"])
        taken = variant_of(config, module).scaling() * a.T @ b
        whole = left + (taken if module == "conv" else taken.T)  # Conv1D stores (in, out)
        np.testing.assert_allclose(whole, base[name], atol=1e-5, rtol=0)
        base[name] = whole
    return base


def with_constants(frozen, fixed, start):
    """Frozen arrays with what PEFT has drawn, or taken from the weights, in the place of ours.

    Args:
      fixed: what PEFT does not train: VeRA's projections in its names, or {weight: {a}}.
      start: {weight: {a, b}} of PEFT, in our layout.
    """
    if "base_model.vera_A.default" in fixed:
        a, b = (fixed[f"base_model.vera_{letter}.default"] for letter in "AB")
        shared = {"projection_a": jnp.asarray(a), "projection_b": jnp.asarray(b.T)}
        shared |= {"init_key": frozen.shared[0]["init_key"]}
        # Stored once for all matrices, and as large as PEFT's.
        assert jax.tree.map(jnp.shape, (shared,)) == jax.tree.map(jnp.shape, frozen.shared)
        return dataclasses.replace(frozen, shared=(shared,))
    if "base_model.randlora_A.default" in fixed:
        return dataclasses.replace(frozen, shared=(_random_matrices(frozen.shared[0], fixed),))
    constants = {path: dict(each) for path, each in frozen.constants.items()}
    for path, each in constants.items():
        if "a0" in each:
            each |= {"a0": start[path]["a"], "b0": start[path]["b"]}
    for path, each in fixed.items():
        constants[path] |= each
    shapes = [jax.tree.map(jnp.shape, each) for each in (constants, frozen.constants)]
    assert shapes[0] == shapes[1]
    return dataclasses.replace(frozen, constants=constants)


def _random_matrices(ours, fixed):
    """RandLoRA's A and B in our order and sizes, if all matrices have as many terms as ours."""
    a, b = (fixed[f"base_model.randlora_{letter}.default"] for letter in "AB")
    terms, rank, long = ours["random_b"].shape
    rows = b[:long, :terms].reshape(long, rank, terms)  # column k * terms + i is of row k in term i
    short = ours["random_a"].shape[1]
    return {
        "init_key": ours["init_key"],
        "random_a": jnp.asarray(a[:, 0, :short]),
        "random_b": jnp.asarray(rows.transpose(2, 1, 0)),
    }


def within(arrays, config, use):
    """`use(adapted, trainable, frozen, params)` with PEFT's numbers in them, and our own start.

    All in one compiled program. The start is what `init` gives: trainable and frozen.
    """
    adapted = adapt(config)

    @jax.jit
    def run(params, trainable, start, fixed):
        begun = fresh, frozen = adapted.init(jax.random.key(0), params, arrays["ids"])
        shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), (fresh, trainable))
        assert shapes[0] == shapes[1]
        return use(adapted, trainable, with_constants(frozen, fixed, start), params), begun

    trainable = trainable_of(group(arrays, "param"))
    start, fixed = to_factors(group(arrays, "start")), group(arrays, "fixed")
    fixed = fixed if config.get("method") in ("vera", "randlora") else to_factors(fixed)
    return run(base_of(arrays, config), trainable, start, fixed)


def squared_error(adapted, frozen, ids, t, **options):
    def loss_of(trainable):
        y = adapted.apply(trainable, frozen, ids, **options)
        return ((y - t) ** 2).mean(), y

    return loss_of


def assert_agrees(arrays, config):
    """Output, loss, gradients, merged weights to 1e-12, and a whole trajectory to 1e-10.

    Returns our own start (see `within`).
    """
    arrays = dict(arrays)

    def computed(adapted, trainable, frozen, _):
        loss_of = squared_error(adapted, frozen, arrays["ids"], arrays["t"])

        def move(trainable, _):
            value, gradient = jax.value_and_grad(loss_of, has_aux=True)(trainable)
            gradient = slopes_of(gradient, config)
            after = jax.tree.map(lambda x, g: x - RATE * g, trainable, gradient)
            return after, (value, gradient)

        trained, each = lax.scan(move, trainable, length=STEPS)
        first = jax.tree.map(lambda leaf: leaf[0], each)
        return first, trained, adapted.merge(trainable, frozen)

    (((value, y), gradient), trained, merged), begun = within(arrays, config, computed)
    np.testing.assert_allclose(y, arrays["y"], atol=1e-12, rtol=0)
    np.testing.assert_allclose(value, arrays["loss"], atol=1e-12, rtol=0)
    assert_trees_close(gradient, trainable_of(group(arrays, "grad")), 1e-12)

    assert_trees_close(merged, group(arrays, "merged"), 1e-12)
    merged, ids = jax.tree.map(np.asarray, merged), arrays["ids"]
    np.testing.assert_allclose(
        forward(merged, ids, np.tanh), arrays["y_merged"], atol=1e-12, rtol=0
    )
    plain = forward(base_of(arrays, config), ids, np.tanh)
    assert np.abs(arrays["y"] - plain).max() > 1e-3  # the adapters matter

    moved = [np.abs(arrays[f"trained/{k}"] - v).max() for k, v in group(arrays, "param").items()]
    assert max(moved) > 1e-3
    if "optimiser" not in config:
        assert_trees_close(trained, trainable_of(group(arrays, "trained")), 1e-10)
    return begun
