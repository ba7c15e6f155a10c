"""Write requirements/licences.csv: the licence of each locked package that this environment has.

    .venv-parity/bin/python requirements/licences.py

What a package says of itself is taken as it is: `License-Expression`, else its classifiers, else
the first line of `License`. `make sbom` calls this.
"""

import csv
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).parent
NOT_HERE = "not installed here"
SILENT = "not said"


def locked(path: Path) -> list[str]:
    """The names of the packages in a file of constraints, each once."""
    lines = [line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines()]
    return list(dict.fromkeys(Requirement(line).name for line in lines if line))


def licence(name: str) -> tuple[str, str, str]:
    """A package's version, its licence, and the field of its metadata that says so."""
    try:
        found = metadata(name)
    except PackageNotFoundError:
        return "", NOT_HERE, ""
    version = found["Version"]
    if expression := found.get("License-Expression"):
        return version, expression, "License-Expression"
    classified = [
        each.rpartition(" :: ")[2]
        for each in found.get_all("Classifier") or ()
        if each.startswith("License :: ") and each.count(" :: ") > 1
    ]
    if classified:
        return version, " AND ".join(classified), "Classifier"
    lines = (found.get("License") or "").strip().splitlines()
    return (version, lines[0].strip(), "License") if lines else (version, SILENT, "")


def main() -> None:
    rows = [(name, *licence(name)) for name in locked(HERE / "constraints.txt")]
    with (HERE / "licences.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("package", "version", "licence", "said by"))
        writer.writerows(rows)
    unknown = [name for name, _, said, _ in rows if said in (SILENT, NOT_HERE)]
    print(f"{len(rows)} packages; without a licence here: {', '.join(unknown) or 'none'}")


if __name__ == "__main__":
    sys.exit(main())
