"""How the states of trials are saved: a run's, or those of a group in common checkpoints."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from lora_jax.files.canonical_json import numbers
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.outcome import Outcome
from lora_jax.training.step import TrainState
from lora_jax.training.trial_program import Program, stack, unstack


class SavedTrials(Protocol):
    """The saved states of N trials, as `loop.fit` restores, saves and keeps them."""

    def restore(
        self, states: Sequence[TrainState], outcomes: Sequence[Outcome]
    ) -> tuple[Sequence[TrainState], int]:
        """The newest saved states and their step; the given ones and 0 if none were saved.

        Fills in the outcomes.

        Raises:
          ValueError: the newest checkpoint is of a run with another identity.
        """
        ...

    def improved(self, number: int, state: TrainState) -> None:
        """Keep the state of a trial: its evaluation is the best so far."""

    def save(
        self,
        step: int,
        program: Program,
        population: Any,
        outcomes: Sequence[Outcome],
        eligible: bool,
    ) -> None:
        """Save the states after a step.

        Args:
          population: the states, as `program` holds them.
          eligible: whether they were evaluated and may be the best.
        """

    def best(
        self, states: Sequence[TrainState], outcomes: Sequence[Outcome]
    ) -> tuple[list[TrainState], list[str]]:
        """The states of the best evaluations, and for each trial a note for its record.

        Args:
          states: the last states, which are returned where no evaluation could be the best.
        """
        ...


@dataclasses.dataclass(frozen=True)
class OneTrial:
    """A run's states, of which the best is a checkpoint (`Checkpoints(best=...)`)."""

    checkpoints: Checkpoints
    identity: Mapping[str, str]
    """Digests of what the run depends on besides its state, kept in every checkpoint."""

    def restore(
        self, states: Sequence[TrainState], outcomes: Sequence[Outcome]
    ) -> tuple[Sequence[TrainState], int]:
        if (restored := self.checkpoints.restore(states[0])) is None:
            return states, 0
        state, meta, step = restored
        _go_on(self, meta["identity"], outcomes, [meta["outcome"]])
        return [state], step

    def improved(self, number: int, state: TrainState) -> None:
        """Every evaluation is saved anyway."""

    def save(
        self,
        step: int,
        program: Program,
        population: Any,
        outcomes: Sequence[Outcome],
        eligible: bool,
    ) -> None:
        (outcome,) = outcomes
        meta = {"outcome": dataclasses.asdict(outcome), "identity": dict(self.identity)}
        scores = outcome.metrics_last if eligible else {}
        self.checkpoints.save(step, program.pick(population, 0), meta | scores)

    def best(
        self, states: Sequence[TrainState], outcomes: Sequence[Outcome]
    ) -> tuple[list[TrainState], list[str]]:
        """As in `SavedTrials`; in place of a damaged checkpoint, the next best is taken.

        The outcome is then changed to name that one.
        """
        (state,), (outcome,) = states, outcomes
        wanted = outcome.best_step
        if (
            outcome.diverged
            or wanted == outcome.steps
            or (restored := self.checkpoints.restore_best(state)) is None
        ):
            return [state], [""]
        state, meta, step = restored
        if step == wanted:
            return [state], [""]
        outcome.best_step, outcome.metrics_best = step, meta["outcome"]["metrics_last"]
        note = f"the best checkpoint, of step {wanted}, is damaged: of step {step} instead"
        return [state], [note]


@dataclasses.dataclass
class ManyTrials:
    """The states of a group, in common checkpoints; copies of the best are saved with the last."""

    checkpoints: Checkpoints
    identity: Mapping[str, str]
    """As in `OneTrial`."""
    keep_best: bool = False
    """Whether the best states are kept; if not, `best` gives the last."""
    kept: list[TrainState] = dataclasses.field(default_factory=list, init=False)
    """The best states so far; a trial without a best evaluation has its first state here."""

    def restore(
        self, states: Sequence[TrainState], outcomes: Sequence[Outcome]
    ) -> tuple[Sequence[TrainState], int]:
        now = jax.eval_shape(stack, states)
        like = {"now": now, "best": now if self.keep_best else {}}
        if (restored := self.checkpoints.restore(like)) is None:
            self.kept = jax.tree.map(jnp.copy, list(states)) if self.keep_best else []
            return states, 0
        saved, meta, step = restored
        _go_on(self, meta["identity"], outcomes, meta["outcomes"])
        count = len(states)
        self.kept = [unstack(saved["best"], n) for n in range(count)] if self.keep_best else []
        return [unstack(saved["now"], number) for number in range(count)], step

    def improved(self, number: int, state: TrainState) -> None:
        if self.keep_best:
            self.kept[number] = jax.tree.map(jnp.copy, state)

    def save(
        self,
        step: int,
        program: Program,
        population: Any,
        outcomes: Sequence[Outcome],
        eligible: bool,
    ) -> None:
        best = stack(self.kept) if self.keep_best else {}
        described = [dataclasses.asdict(outcome) for outcome in outcomes]
        self.checkpoints.save(
            step,
            {"now": program.stacked(population), "best": best},
            {"identity": dict(self.identity), "outcomes": described},
            owned=program.at_once is None,  # these states were stacked for this alone
        )

    def best(
        self, states: Sequence[TrainState], outcomes: Sequence[Outcome]
    ) -> tuple[list[TrainState], list[str]]:
        found = self.kept or states
        chosen = [found[n] if each.best_step else states[n] for n, each in enumerate(outcomes)]
        return chosen, [""] * len(chosen)


@dataclasses.dataclass
class Continued(ManyTrials):
    """The states of a group that goes on from those of a larger one, if it has none of its own."""

    begin: Callable[[], tuple[list[TrainState], list[TrainState], int]] | None = None
    """Gives the states to begin with, the best ones so far (if any are kept) and their step.

    It also fills in the outcomes.
    """

    def restore(
        self, states: Sequence[TrainState], outcomes: Sequence[Outcome]
    ) -> tuple[Sequence[TrainState], int]:
        found, step = super().restore(states, outcomes)
        if step or self.begin is None:
            return found, step
        found, kept, step = self.begin()
        self.kept = kept if self.keep_best else []
        return found, step


def _go_on(
    trials: OneTrial | ManyTrials,
    identity: Mapping[str, str],
    outcomes: Sequence[Outcome],
    saved: Sequence[Mapping[str, Any]],
) -> None:
    """Fill in the outcomes from a checkpoint, whose identity must be that of the trials."""
    for name, digest in identity.items():
        if trials.identity.get(name) != digest:
            folder = trials.checkpoints.folder
            raise ValueError(f"{folder} belongs to a run with other {name}; name another folder")
    for outcome, values in zip(outcomes, saved, strict=True):
        vars(outcome).update({"evaluations": None} | numbers(values))
