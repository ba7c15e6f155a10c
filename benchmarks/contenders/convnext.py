"""A training step of a small ConvNeXt: in full, with LoRA, and with LoRA written by hand.

Depthwise convolutions are adapted only by the targets `all-linear+conv`; by hand, LoRA is beside
the dense layers alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

import lora_jax as lj
import variants
from benchmarks.cases import ALPHA, Case
from benchmarks.contenders.made import Made, stepping

WIDTHS, DEPTHS, CLASSES = (40, 80, 160, 320), (2, 2, 6, 2), 10


def step_work(case: Case) -> Made:
    """Training steps on `rows` images of `tokens` x `tokens` pixels."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(case.rows, case.tokens, case.tokens, 3)).astype(np.float32)
    batch = {"images": images, "label": rng.integers(0, CLASSES, case.rows)}
    params = parameters(rng, case.rank if case.method == "hand" else 0)
    if case.method == "lora":
        lora = variants.make("lora", rank=case.rank, alpha=ALPHA)
        adapted = lj.adapt(forward, lora, targets=[case.targets], also_train=["^head/.*"])
        apply, (trained, frozen) = adapted.apply, adapted.init(jax.random.key(0), params, images)
    else:
        apply, trained, frozen = split(params, everything=case.method == "full")
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.01))

    def objective(trained: Any, frozen: Any, batch: Any) -> Array:
        logits = apply(trained, frozen, batch["images"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    def step(state: Any, frozen: Any, batch: Any) -> Any:
        trained, moments = state
        value, gradient = jax.value_and_grad(objective)(trained, frozen, batch)
        updates, moments = tx.update(gradient, moments, trained)
        return (optax.apply_updates(trained, updates), moments), {"loss": value}

    trained = jax.tree.map(jnp.copy, trained)
    return stepping(jax.jit(step, donate_argnums=0), (trained, tx.init(trained)), frozen, batch)


def split(params: Any, everything: bool) -> tuple[Any, list[Array], list[Array]]:
    """The forward pass of two lists of arrays: what trains (all, or factors and head), and not."""
    leaves, tree = jax.tree.flatten_with_path(params)
    mine = [everything or path[0].key == "head" or path[-1].key in ("a", "b") for path, _ in leaves]

    def apply(trained: list[Array], frozen: list[Array], images: Array) -> Array:
        sides = iter(trained), iter(frozen)
        return forward(tree.unflatten(next(sides[not each]) for each in mine), images)

    trained = [leaf for (_, leaf), each in zip(leaves, mine, strict=True) if each]
    frozen = [leaf for (_, leaf), each in zip(leaves, mine, strict=True) if not each]
    return apply, trained, frozen


def parameters(rng: np.random.Generator, rank: int) -> dict[str, Any]:
    """Random weights; with a rank, factors `a` and `b` beside the dense layers of blocks."""

    def layer(*shape: int, rank: int = 0) -> dict[str, Array]:
        kernel = rng.normal(size=shape).astype(np.float32) * np.prod(shape[:-1]) ** -0.5
        own = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(shape[-1])}
        factors = {"a": jnp.full((shape[0], rank), 0.01), "b": jnp.zeros((rank, shape[-1]))}
        return own | factors if rank else own

    def norm(width: int) -> dict[str, Array]:
        return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}

    stages, before = [], 3
    for number, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
        side = 2 if number else 4
        blocks = [
            {
                "depthwise": layer(7, 7, 1, width),
                "norm": norm(width),
                "up": layer(width, 4 * width, rank=rank),
                "down": layer(4 * width, width, rank=rank),
            }
            for _ in range(depth)
        ]
        stages.append({"patches": layer(side, side, before, width), "norm": norm(width)})
        stages[-1]["blocks"] = blocks
        before = width
    return {"stages": stages, "norm": norm(before), "head": layer(before, CLASSES)}


def forward(params: Any, images: Array) -> Array:
    """The logits of images, (B, H, W, 3)."""
    x = images
    for stage in params["stages"]:
        side = stage["patches"]["kernel"].shape[0]
        x = _norm(_convolution(x, stage["patches"], side), stage["norm"])
        for block in stage["blocks"]:
            y = _norm(_convolution(x, block["depthwise"], groups=x.shape[-1]), block["norm"])
            x = x + _dense(jax.nn.gelu(_dense(y, block["up"])), block["down"])
    return _dense(_norm(x.mean((1, 2)), params["norm"]), params["head"])


def _convolution(x: Array, layer: Any, stride: int = 1, groups: int = 1) -> Array:
    numbers, kernel = ("NHWC", "HWIO", "NHWC"), layer["kernel"]
    strides = (stride, stride)
    y = lax.conv_general_dilated(
        x, kernel, strides, "SAME", dimension_numbers=numbers, feature_group_count=groups
    )
    return y + layer["bias"]


def _dense(x: Array, layer: Any) -> Array:
    y = x @ layer["kernel"] + layer["bias"]
    if "a" in layer:
        y += ALPHA / layer["a"].shape[1] * ((x @ layer["a"]) @ layer["b"])
    return y


def _norm(x: Array, layer: Any) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    deviation = jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return centred / deviation * layer["scale"] + layer["bias"]
