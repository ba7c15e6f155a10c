"""Successive halving: how many trials go on at which step, and what was decided at each rung.

Of N trials of T steps, with a factor f, only every f-th goes on at a rung, and the steps between
rungs grow by f (Jamieson and Talwalkar 2016, arXiv 1502.07943). The last trials train for T steps.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_jax.messages import agree
from lora_jax.records import seal
from lora_jax.training.loop_settings import Loop


@dataclasses.dataclass(frozen=True)
class Rung:
    """So many trials train until this step."""

    trials: int
    step: int


def plan(trials: int, steps: int, factor: int) -> list[Rung]:
    """The rungs of N trials; the last one is the end of training.

    Raises:
      ValueError: the factor is below 2, or there are too few trials, or too few steps for a rung
        of their own.
    """
    if factor < 2:
        raise ValueError(f"--halving={factor}: expected 2 or more, of which one goes on")
    if trials < factor:
        raise ValueError(
            f"--search=halving lets one of {factor} trials go on: it needs {factor} trials or "
            f"more, not {trials}"
        )
    counts = [trials]
    while counts[-1] >= factor:
        counts.append(counts[-1] // factor)
    last = len(counts) - 1
    rungs = [
        Rung(count, round(steps / factor ** (last - number))) for number, count in enumerate(counts)
    ]
    if steps < factor**last:
        raise ValueError(
            f"--search=halving: {trials} trials need {factor**last} steps or more, not {steps}; "
            "give fewer --trials, or more epochs"
        )
    return rungs


def cost(rungs: Sequence[Rung]) -> int:
    """The steps of all trials together."""
    before = [0, *(rung.step for rung in rungs)]
    return sum(r.trials * (r.step - start) for r, start in zip(rungs, before, strict=False))


def most_trials(steps: int, factor: int, budget: int) -> int:
    """The most trials whose rungs cost no more steps than a budget; 0 if none do.

    More trials may cost less: with another rung, the first one comes earlier.
    """
    # With as many trials as this, a rung would come before the first step.
    ends = factor ** (int(math.log(steps, factor)) + 2)
    for trials in range(min(budget, ends), factor - 1, -1):
        try:
            if cost(plan(trials, steps, factor)) <= budget:
                return trials
        except ValueError:  # too few steps
            continue
    return 0


@dataclasses.dataclass(frozen=True)
class Decision:
    """What was decided at a rung: the scores of the trials by number, best first.

    A trial whose score is not a finite number, or that diverged, has None and does not go on.
    """

    step: int
    scores: Mapping[int, float | None]
    kept: int

    @property
    def going_on(self) -> list[int]:
        """The numbers of the trials that go on, in their order."""
        return sorted(list(self.scores)[: self.kept])

    def place(self, number: int) -> int:
        """The place of a trial among those of the rung; 1 is the best."""
        return list(self.scores).index(number) + 1

    def said(self, number: int, rung: int, metric: str) -> str:
        """Why a trial was taken out."""
        score = self.scores[number]
        got = "no score" if score is None else f"{metric} {score:.4g}"
        go = agree(self.kept, "goes", "go")
        return (
            f"at rung {rung + 1}, step {self.step}: {got}, place {self.place(number)} of "
            f"{len(self.scores)}; {self.kept} {go} on"
        )


def decide(loop: Loop, step: int, scores: Mapping[int, float | None], kept: int) -> Decision:
    """Rank the trials of a rung; of equal scores, the one with the lower number goes on."""

    def worse(number: int) -> tuple[float, int]:
        score = scores[number]
        if score is None or not math.isfinite(score):
            return math.inf, number
        return (-score if loop.mode == "max" else score), number

    ranked = {
        number: scores[number] if math.isfinite(worse(number)[0]) else None
        for number in sorted(scores, key=worse)
    }
    finite = sum(score is not None for score in ranked.values())
    return Decision(step, ranked, min(kept, finite))


class Ledger:
    """The decisions so far, in a file; each is written before trials are taken out."""

    def __init__(self, path: Path):
        self._path = path

    def read(self) -> list[Decision]:
        if not self._path.exists():
            return []
        found = seal.read(self._path)["rungs"]
        return [
            Decision(each["step"], {int(n): score for n, score in each["scores"]}, each["kept"])
            for each in found
        ]

    def add(self, decision: Decision) -> None:
        rungs = [
            {"step": each.step, "scores": list(each.scores.items()), "kept": each.kept}
            for each in (*self.read(), decision)
        ]
        seal.write(self._path, {"rungs": rungs})


def of_trial(decisions: Sequence[Decision], number: int) -> list[dict[str, float | int | None]]:
    """What a trial's record says of the rungs that it reached."""
    return [
        {
            "step": each.step,
            "score": each.scores[number],
            "place": each.place(number),
            "trials": len(each.scores),
            "kept": each.kept,
        }
        for each in decisions
        if number in each.scores
    ]
