"""Say where a report comes from: the command and the code that made it, and those of its runs."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from experiments.analysis.choose_methods import Contest
from experiments.plurals import agree, count
from lora_jax.records.run_record import Record

VERSIONS = ("lora_jax", "jax", "jaxlib", "python")
MOST = 4
"""The most commits that are named."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """When and by what a report was made, and the commits and versions of its runs.

    Empty texts are not known, and not said.
    """

    date: str = ""
    command: str = ""
    commit: str = ""
    runs: int = 0
    run_commits: Sequence[str] = ()
    run_versions: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def lines(self) -> list[tuple[str, str]]:
        """Sentences, and the code that follows each, if any."""
        made = []
        when = f"Generated {self.date}" if self.date else "Generated"
        at = f" at commit {self.commit}" if self.commit else ""
        if self.command:
            made.append((f"{when}{at} by", self.command))
        elif at or self.date:
            made.append((f"{when}{at}.", ""))
        if self.runs:
            of = count(self.runs, "run")
            more = f" and {len(self.run_commits) - MOST} more"
            commits = ", ".join(self.run_commits[:MOST]) + more * (len(self.run_commits) > MOST)
            noun = agree(len(self.run_commits), "commit", "commits")
            where = f" at {noun} {commits}" * bool(commits)
            versions = [
                f"{name} {' and '.join(own)}" for name, own in self.run_versions.items() if own
            ]
            by = f", with {', '.join(versions)}" if versions else ""
            made.append((f"From the records of {of}{where}{by}.", ""))
        return made


def of_runs(made: Sequence[Contest], **how: str) -> Origin:
    """The origin of a report of some contests; `how` is what is known of the report itself."""
    records = [
        run.record
        for contest in made
        for method in contest.methods
        for setting in method.settings
        for run in setting.runs
    ]
    commits = dict.fromkeys(filter(None, (commit(each.git) for each in records)))
    return Origin(
        runs=len(records), run_commits=tuple(commits), run_versions=_versions(records), **how
    )


def commit(git: Mapping[str, str | bool] | None) -> str:
    """The first characters of a commit, with a word if files had been changed; empty if unknown."""
    if git is None or not git.get("commit"):
        return ""
    changed = " (with changes)" if git.get("dirty") else ""
    return f"{str(git['commit'])[:10]}{changed}"


def _versions(records: Iterable[Record]) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {name: {} for name in VERSIONS}
    for record in records:
        for name in VERSIONS:
            if version := record.versions.get(name):
                found[name][version] = None
    return {name: sorted(own) for name, own in found.items()}
