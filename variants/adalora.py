"""AdaLoRA: one budget of ranks for all matrices, spent where it matters most.

Zhang et al. 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", arXiv
2303.10512, equations 3 to 12 and algorithm 1. For W of shape (in, out), used as x @ W,

    W' = W + s A^T diag(e) B.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from lora_jax.files.arrays import to_host
from lora_jax.messages import require_known
from lora_jax.methods import initialization, peft_lora
from lora_jax.methods.checks import MOST, require_finite
from lora_jax.methods.lowrank import SCALES, LowRank
from lora_jax.methods.rank_budget import Schedule, best, keep_rows, phase, sensitivity
from lora_jax.peft_format import Config, Layouts, Peft, Settings, quoted, same, transposed, vector
from lora_jax.variant import Base, Factors, Pruned, Suggested, Variant

Group = Mapping[str, Factors]
MODES = ("paper", "reference")


@dataclasses.dataclass(frozen=True)
class AdaLoRA(LowRank):
    """The update is the paper's P Lambda Q, with A = Q, B = P^T and e the diagonal of Lambda.

    Differences from plain LoRA: A and B are both drawn, and e starts at zero. `penalty` keeps the
    rows of A and of B orthonormal. After every optimiser step, `update` scores each triplet
    (a, e, b) by smoothed sensitivity times uncertainty. It sets e to zero in all but the b(t) best
    triplets of all the variant's matrices together (of equal scores, the first). What was set to
    zero may come back until the ranks are fixed; `lora_jax.transform.prune` then takes it out.

    Mode "paper" scores the weights at which the gradient was taken (algorithm 1) and sums squared
    norms for the penalty (equation 4). Mode "reference" follows the authors' code and PEFT's, step
    by step: weights after the step, the mean of norms that are not squared (gamma differs in size),
    budgets rounded down, s = alpha / (rank + 1e-5). But for equal scores, their code drops more
    than the budget asks for. In both modes, the cubic budget falls from `t_init` on, as in that
    code (as printed, it jumps there).
    """

    peft: ClassVar[str] = "AdaLoraConfig"
    peft_layouts: ClassVar[Layouts] = {
        "a": same("lora_A", "all"),
        "b": transposed("lora_B", 0, 0.0),
        "e": vector("lora_E", "all"),
    }
    peft_config: ClassVar[Config] = Config(
        peft_lora.ADALORA,
        {
            **{"init_r": ("rank", 12), "target_r": ("target_rank", 8)},
            **{"lora_alpha": ("alpha", 8.0), "lora_dropout": ("dropout", 0.0)},
            **{"total_step": ("total_steps", None), "deltaT": ("delta_t", 1)},
            **{"tinit": ("t_init", 0), "tfinal": ("t_final", 0)},
            **{"beta1": ("beta1", 0.85), "beta2": ("beta2", 0.85)},
            **{"orth_reg_weight": ("orthogonality", 0.5)},
        },
        {"loftq_config": {}, "fan_in_fan_out": False, "bias": "none"},
        {"r": None, "use_rslora": None, "init_lora_weights": None},
    )
    # The penalty of the authors' code, which published gammas are for.
    suggested: ClassVar[Suggested] = Suggested(
        settings={"mode": "reference", "rank": 12, "target_rank": 8, "alpha": 16.0}
    )

    additive: ClassVar[bool] = False

    rank: int = 12
    """The rank of every matrix at the start."""
    initialization: str = "normal"
    """How A and B are drawn; one of the names of `initialization.starting_factors`."""
    target_rank: int = 8
    """The mean rank in the end."""
    total_steps: int = 1000
    """How many steps training takes; the budget is planned over them."""
    t_init: int | None = None
    """How many steps keep all ranks; a tenth of all by default."""
    t_final: int | None = None
    """How many steps at the end keep the ranks fixed; half of all by default."""
    delta_t: int = 1
    """Ranks are chosen every `delta_t` steps."""
    beta1: float = 0.85
    """How much of the smoothed sensitivity each step keeps."""
    beta2: float = 0.85
    """How much of the smoothed uncertainty each step keeps."""
    orthogonality: float = 0.1
    """gamma, the factor of the penalty."""
    mode: str = "paper"
    """`paper`, or `reference` for the rules of the authors' code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.schedule.validate()
        require_known(self.mode, MODES, f"mode '{self.mode}' is unknown")
        if self.max_rank is not None:
            raise ValueError("AdaLoRA chooses ranks itself: leave max_rank out")
        if self.allots:
            raise ValueError("AdaLoRA chooses ranks itself: initialization='eva' takes no rho")
        if self.preconditions:
            raise ValueError("AdaLoRA's update has a factor e that no preconditioner knows of")
        for name in ("beta1", "beta2", "orthogonality"):
            require_finite(name, getattr(self, name))
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"betas must be in [0, 1), got {self.beta1} and {self.beta2}")
        if not self.orthogonality >= 0:
            raise ValueError(f"orthogonality must be at least 0, got {self.orthogonality}")

    @property
    def differs_at_init(self) -> str:
        return ""  # e starts at zero, whatever A and B are

    @property
    def schedule(self) -> Schedule:
        return Schedule(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Schedule)})

    @property
    def settled(self) -> int:
        return self.schedule.fixed

    def scaling(self) -> float:
        return SCALES[self.scale](self.alpha, self.rank + 1e-5 * (self.mode == "reference"))

    def init(self, key: Array, base: Base) -> Factors:
        left, right = jax.random.split(key)
        trainable, constants = super().init(left, base)
        if not initialization.moves_the_weight(self.initialization):
            # B by the same rule for its own side, or at random if data tell of inputs only (EVA).
            drawn = self.initialization in initialization.DRAWN
            rule = self if drawn else dataclasses.replace(self, initialization="normal")
            turned = Base(jnp.zeros(base.shape[::-1], base.dtype), "io")
            trainable["b"] = super(AdaLoRA, rule).init(right, turned).trainable["a"]
        for start in ("a0", "b0"):  # e starts at zero, so there is no effect to subtract
            constants.pop(start, None)
        return Factors(trainable | {"e": jnp.zeros(self.rank, trainable["a"].dtype)}, constants)

    def scales(self, factors: Factors) -> Array:
        return super().scales(factors) * factors.trainable["e"][:, None]

    def to_peft(self, base: Base, factors: Factors, lookup: bool = False) -> Peft | None:
        if lookup:
            return None
        trainable, alpha = factors.trainable, float(factors.constants["scale"])
        alpha *= self.rank + 1e-5
        if alpha <= 0:  # PEFT takes the rank for it
            trainable = {**trainable, "e": trainable["e"] * (alpha / self.rank)}
            alpha = float(self.rank)
        settings = self.peft_settings(base, factors) | {
            **{"lora_alpha": alpha},
            **{"tinit": self.schedule.start, "tfinal": self.total_steps - self.settled},
        }
        return peft_lora.adalora_written(settings, trainable, self.peft_layouts)

    @classmethod
    def from_peft(cls, config: Settings) -> "AdaLoRA | None":
        if (known := cls.peft_config.read(config)) is None:
            return None
        for theirs, (ours, _) in cls.peft_config.fields.items():
            if isinstance(known[ours], int) and known[ours] > MOST:
                said = f"{theirs} must be at most {MOST:,}, got {quoted(known[ours])}"
                raise ValueError(f"{peft_lora.ADALORA}: {said}")
        least = max(1000, known["t_init"] + known["t_final"] + 1)
        known |= {
            "target_rank": min(known["target_rank"], known["rank"]),
            "alpha": known["alpha"] if known["alpha"] > 0 else float(known["rank"]),
            "total_steps": known["total_steps"] or least,
        }
        return cls(mode="reference", **known)

    def factors_from_peft(self, base: Base, peft: Peft, begun: Factors) -> Factors:
        whole = peft_lora.adalora_rows(peft, self.peft_layouts, begun.trainable)
        return begun._replace(trainable=whole)

    def count(self, shape: tuple[int, int]) -> int:
        return self.rank * (sum(shape) + 1)

    align = Variant.align  # layers of a stack do not differ

    def init_shared(self, key: Array, shapes: Any, dtype: Any) -> dict[str, Array]:
        steps = self.schedule.arrays(len(shapes), round if self.mode == "paper" else int)
        real = ("beta1", "beta2", "orthogonality")
        return steps | {name: jnp.asarray(getattr(self, name), dtype) for name in real}

    def penalty(self, factors: Group) -> Array:
        gamma = _shared(factors)["orthogonality"]
        squares, active = [], []
        for each in factors.values():
            for x in (each.trainable["a"], each.trainable["b"]):
                unit = jnp.eye(self.rank, dtype=x.dtype)
                off = jax.vmap(lambda x, unit=unit: x @ x.T - unit)(x.reshape(-1, *x.shape[-2:]))
                squares.append(jnp.square(off).sum((1, 2)).astype(gamma.dtype))
                active.append(_active(each).ravel())
        square, chosen = jnp.concatenate(squares), jnp.concatenate(active)
        if self.mode == "paper":
            return gamma * square.sum(where=chosen)
        safe = jnp.where(square > 0, square, 1)  # where the norm is zero, so is its gradient
        return gamma * jnp.where(square > 0, jnp.sqrt(safe), 0).mean(where=chosen)

    def init_state(self, factors: Group) -> dict[str, Any]:
        zeros = {path: jax.tree.map(jnp.zeros_like, f.trainable) for path, f in factors.items()}
        kept = {path: jnp.ones(f.trainable["e"].shape, bool) for path, f in factors.items()}
        return {"importance": zeros, "uncertainty": jax.tree.map(jnp.copy, zeros), "kept": kept}

    def update(
        self, state: Any, before: Group, after: Group, grads: Mapping[str, Any], step: Array
    ) -> tuple[Any, dict[str, dict[str, Array]]]:
        shared, seen = _shared(after), before if self.mode == "paper" else after
        scoring, choosing, budget = phase(shared, step)
        weights = {path: each.trainable for path, each in seen.items()}
        old = {name: state[name] for name in ("importance", "uncertainty")}
        new = sensitivity(old, weights, grads, shared["beta1"], shared["beta2"])
        smoothed = jax.tree.map(partial(jnp.where, scoring), new, old)

        def score(path: str) -> Array:  # equation 7
            s = jax.tree.map(jnp.multiply, *(each[path] for each in smoothed.values()))
            total = s["e"] + s["a"].mean(-1) + s["b"].mean(-1)
            return jnp.where(_active(after[path])[..., None], total, -jnp.inf)

        chosen = best({path: score(path) for path in after}, budget)
        kept = jax.tree.map(partial(jnp.where, choosing), chosen, state["kept"])
        trainable = {path: dict(each.trainable) for path, each in after.items()}
        for path, mine in trainable.items():
            mine["e"] = jnp.where(kept[path] | (scoring & ~choosing), mine["e"], 0)
        return smoothed | {"kept": kept}, trainable

    def prune(self, state: Any, factors: Group) -> dict[str, Pruned | None]:
        pruned = {}
        for path, each in factors.items():
            used = to_host(each.trainable["e"]) != 0
            if state is not None:
                used |= to_host(state["kept"][path])
            folded = Factors(_folded(each.trainable), each.constants)
            pruned[path] = keep_rows(self, folded, used & to_host(_active(each))[..., None])
        return pruned

    def doubt(self, factors: Group) -> str:
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(dict(factors))):
            return ""
        used = sum(int(np.count_nonzero(to_host(f.trainable["e"]))) for f in factors.values())
        first, *_, last = _shared(factors)["budget"].tolist()
        found = f"AdaLoRA: {used} of {first} triplets are in use, the final budget is {last}"
        wanted = "call adapted.update(...) after every optimiser step"
        until = f"for total_steps={self.total_steps} (before these are over, all is well)"
        return f"{found}: {wanted}, {until}" if used > last else ""


def _shared(factors: Group) -> dict[str, Array]:
    return next(iter(factors.values())).constants


@jax.jit
def _folded(trainable: dict[str, Array]) -> dict[str, Array]:
    """A, and B times e: the same effect without e."""
    return {"a": trainable["a"], "b": trainable["e"][..., None] * trainable["b"]}


def _active(factors: Factors) -> Array:
    """Which matrices of a stack are adapted: all, unless some layers are left out."""
    return factors.constants.get("active", jnp.ones(factors.trainable["e"].shape[:-1], bool))
