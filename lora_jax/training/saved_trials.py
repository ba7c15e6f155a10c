"""How the states of trials are saved: in common checkpoints, with what is kept of their best."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lora_jax.files.json_text import numbers
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.outcome import Outcome
from lora_jax.training.step import TrainState, eval_params
from lora_jax.training.trial_program import Program, stack, unstack


@dataclasses.dataclass
class SavedTrials:
    """The saved states of N trials, as `loop.fit` restores, saves and keeps them.

    The states of several trials are saved stacked; that of a single one, a run's, as it is.
    """

    checkpoints: Checkpoints
    identity: Mapping[str, str]
    """Digests of what the trials depend on besides their states, kept in every checkpoint."""
    keep_best: bool = False
    """Whether the best states are kept; if not, `best` gives the last."""
    begin: Callable[[], tuple[list[TrainState], list[TrainState], int]] | None = None
    """For trials that go on from those of a larger group, if they have no checkpoint of their own.

    It gives the states to begin with, the best ones so far (if any are kept) and their step, and
    fills in the outcomes.
    """
    kept: list[TrainState] = dataclasses.field(default_factory=list, init=False)
    """The best states so far (`without_optimizer`); the first one of a trial without a best."""

    def restore(
        self, states: Sequence[TrainState], outcomes: Sequence[Outcome]
    ) -> tuple[Sequence[TrainState], int]:
        """The newest saved states and their step; the given ones and 0 if none were saved.

        Fills in the outcomes.

        Raises:
          ValueError: the newest checkpoint is of trials with another identity.
        """
        best = list(map(without_optimizer, states)) if self.keep_best else []
        like = {"now": list(states), "best": best}
        one = len(states) == 1
        restored = self.checkpoints.restore(like if one else jax.eval_shape(_stacked, like))
        if restored is not None:
            saved, meta, step = restored
            self._go_on(meta, outcomes)
            found = saved if one else {name: _unstacked(each) for name, each in saved.items()}
            self.kept = found["best"]
            return found["now"], step
        if self.begin is not None:
            found, kept, step = self.begin()
            self.kept = kept if self.keep_best else []
            return found, step
        self.kept = jax.tree.map(jnp.copy, best)
        return states, 0

    def improved(self, number: int, state: TrainState) -> None:
        """Keep the state of a trial: its evaluation is the best so far."""
        if self.keep_best:
            self.kept[number] = jax.tree.map(jnp.copy, without_optimizer(state))

    def save(
        self, step: int, program: Program, population: Any, outcomes: Sequence[Outcome]
    ) -> None:
        """Save the states after a step.

        Args:
          population: the states, as `program` holds them.
        """
        one = len(outcomes) == 1
        now = [program.pick(population, 0)] if one else program.stacked(population)
        best = self.kept if one or not self.kept else stack(self.kept)
        self.checkpoints.save(
            step,
            {"now": now, "best": best},
            {
                "identity": dict(self.identity),
                "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
            },
            owned=not one and program.at_once is None,  # these were stacked for this alone
        )

    def best(self, states: Sequence[TrainState], outcomes: Sequence[Outcome]) -> list[TrainState]:
        """The states of the best evaluations, if they are kept.

        Args:
          states: the last states, which are returned where no evaluation could be the best.
        """
        found = self.kept or states
        return [found[n] if each.best_step else states[n] for n, each in enumerate(outcomes)]

    def _go_on(self, meta: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
        """Fill in the outcomes from a checkpoint, whose identity must be that of the trials."""
        for name, digest in meta["identity"].items():
            if self.identity.get(name) != digest:
                folder = self.checkpoints.folder
                raise ValueError(
                    f"{folder} belongs to a run with other {name}; name another folder"
                )
        for outcome, values in zip(outcomes, meta["outcomes"], strict=True):
            vars(outcome).update({"evaluations": None} | numbers(values))


def without_optimizer(state: TrainState) -> TrainState:
    """What a run leaves of a state: the trainables to evaluate, and the state of the variant."""
    return dataclasses.replace(state, trainable=eval_params(state), opt_state=(), average=None)


def _stacked(trees: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    return {name: stack(each) if each else [] for name, each in trees.items()}


def _unstacked(tree: Any) -> list[Any]:
    """The pytrees that `stack` has put together."""
    leaves = jax.tree.leaves(tree)
    return [unstack(tree, number) for number in range(len(leaves[0]) if leaves else 0)]
