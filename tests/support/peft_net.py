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
from lora_jax.contract.clause import by_numpy
from lora_jax.interchange.peft_config import compiled, of_module
from lora_jax.methods import peft_lora
from lora_jax.peft_format import Peft
from variants import hira
from variants.gralora import GraLoRA


def forward(params, ids, tanh=jnp.tanh):
    """The torch `net` of the fixtures, over its own state dict; with NumPy's tanh in NumPy."""
    x = params["embed.weight"][ids]
    x = tanh(x @ params["conv.weight"] + params["conv.bias"][None, None])
    x = tanh(x @ params["l1.weight"].T + params["l1.bias"][None, None])
    return x @ params["l2.weight"].T + params["l2.bias"][None, None]


def variant_of(config, module):
    """The variant that a config of PEFT means for one module.

    Args:
      config: PEFT's settings, and under `method` the name of the variant (LoRA if there is none).
    """
    method, own = config.get("method", "lora"), ("method", "optimiser", "seed", "biases")
    settings = {"peft_type": "LORA", **METHODS[method]}
    settings |= {name: value for name, value in config.items() if name not in own}
    start = settings.get("init_lora_weights")
    if fast := str(start).startswith("pissa_niter"):  # drawn, so that no file is read with it
        settings["init_lora_weights"] = "pissa"
    settings["layer_has_bias"] = config.get("biases", True)
    variant = variants.from_peft(of_module(settings, module, compiled(settings)))
    if method == "adalora":  # all ranks stay, so that nothing has to be pruned
        return dataclasses.replace(variant, target_rank=variant.rank)
    changes = {"initialization": start} if fast or start == "gaussian" else {}
    if method == "lora_plus":
        changes["learning_rate_ratio"] = config["optimiser"]["ratio"]
    if method == "riemannian":
        changes["damping"] = config["optimiser"]["damping"]
    if settings["peft_type"] != "LORA" or method == "dora":
        return dataclasses.replace(variant, **changes)
    fields = {f.name: getattr(variant, f.name) for f in dataclasses.fields(variant)}
    changed = {"preconditioner": "riemannian"} if method == "riemannian" else {}
    return variants.make(method, **{**fields, **changed, **changes})


def adapt(config):
    modules = config["target_modules"]
    targets = {re.escape(f"{module}.weight"): variant_of(config, module) for module in modules}
    return lj.adapt(forward, targets=targets)


def _layouts():
    """What every factor is called in PEFT, {its name: (our name, how to read it)}."""
    each = [variants.make(name).peft_layouts for name in variants.names()]
    each += [peft_lora.LINEAR, peft_lora.EMBEDDING, hira.LINEAR, hira.EMBEDDING]
    each += [GraLoRA()._layouts()]
    found = {one.name: (ours, one.read) for layouts in each for ours, one in layouts.items()}
    fixtures = {f"{method}_places": ("places", np.asarray) for method in ("fourierft", "shira")}
    return found | fixtures


LAYOUTS = _layouts()
BANK = ".vblora_vector_bank"


def to_factors(tensors):
    """{weight: {a, b, m ...}} from PEFT's tensors, as they are named in files or in memory.

    Without the bank that VB-LoRA's matrices share.
    """
    adapters = {}
    for name, tensor in tensors.items():
        if BANK in name:
            continue
        bare = name.removeprefix("base_model.model.").replace(".default", "")
        parts = bare.replace("magnitude_vector.weight", "magnitude_vector").split(".")
        if parts[-1] in ("randlora_A", "randlora_B"):
            continue  # copies of what all share, which PEFT saves for each module
        last = 1 if parts[-1] in LAYOUTS else 2
        ours, read = LAYOUTS[".".join(parts[-last:])]
        weight = f"{'.'.join(parts[:-last])}.weight"
        adapters.setdefault(weight, {})[ours] = jnp.asarray(read(tensor))
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
    shared = {n.split(".")[1]: x for n, x in fixed.items() if n.count(".") == 2}
    if shared:  # base_model.vera_A.default
        ((variant, _),) = frozen.spec.groups().items()
        found = variant.shared_from_peft(Peft({}, {}, shared), frozen.shared[0])
        # Stored once for all matrices, and as large as PEFT's.
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, frozen.shared[0])
        return dataclasses.replace(frozen, shared=(jax.tree.map(jnp.asarray, found),))
    constants = {path: dict(each) for path, each in frozen.constants.items()}
    for path, each in constants.items():
        if "a0" in each:
            each |= {"a0": start[path]["a"], "b0": start[path]["b"]}
    for path, each in fixed.items():
        constants[path] |= each
    shapes = [jax.tree.map(jnp.shape, each) for each in (constants, frozen.constants)]
    assert shapes[0] == shapes[1]
    return dataclasses.replace(frozen, constants=constants)


def within(arrays, config, use):
    """`use(adapted, trainable, frozen, params)` with PEFT's numbers in them, and our own start.

    All in one program, by NumPy, which has nothing to compile. The start is what `init` gives:
    trainable and frozen.
    """
    adapted = adapt(config)

    @by_numpy
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
