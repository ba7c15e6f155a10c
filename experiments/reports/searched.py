"""What successive halving leaves in a report: the trials that were stopped, and when."""

from collections import Counter

from experiments.analysis.choose_methods import Contest, halved
from experiments.analysis.recorded_runs import Run, scale
from experiments.figures import halving
from experiments.figures.panels import metric_label
from experiments.reports.pictures import Picture


def picture(contest: Contest) -> Picture | None:
    """Scores at the rungs, for the trials of all methods; None if none were halved."""
    runs = [run for method in contest.methods for run in halved(method)]
    drawn = [(run, path) for run in runs if (path := _path(run, contest.metric))]
    if not drawn:
        return None
    statuses = Counter(run.record.status for run, _ in drawn)
    ended, diverged = statuses["completed"], statuses["diverged"]
    stopped = f"{len(drawn) - ended - diverged} were stopped"
    stopped += f" and {diverged} diverged" * bool(diverged)
    steps = sum(run.record.steps for run in runs)
    said = (
        f"Scores on held-out examples at each rung, n = {len(drawn)} trials, of which {ended} "
        f"trained to the end (blue) and {stopped} (grey, a cross at the last rung); {steps:,} "
        "training steps in all."
    )
    paths = [path for _, path in drawn]
    figure = halving.draw(paths, title=contest.title, scores=metric_label(contest.metric))
    return Picture("halving", "Trials that were stopped early", said, figure)


def _path(run: Run, metric: str) -> halving.Path | None:
    record = run.record
    points: list[tuple[int, float]] = [
        (each["step"], each["score"] * scale(metric))
        for each in record.rungs or ()
        if each["score"] is not None
    ]
    if run.completed and (score := run.score(metric, run.config.train.select)) is not None:
        points.append((record.steps, score))
    return halving.Path(points, run.completed) if points else None
