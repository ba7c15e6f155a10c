"""Write requirements/licences.csv, the licences of all locked packages, and print known faults.

    .venv-parity/bin/python requirements/licences.py

What a package says of itself is taken as it is: `License-Expression`, else its classifiers, else
the first line of `License`. A package that is not installed here is looked up on PyPI, which has
that of its newest version, and the vulnerabilities of this one. `make sbom` calls this.
"""

import csv
import json
import sys
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
SILENT = "not said"


def locked(path: Path) -> list[tuple[str, str]]:
    """The packages in a file of constraints and their versions."""
    lines = [line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines()]
    found = [Requirement(line) for line in lines if line]
    return [(each.name, str(each.specifier).removeprefix("==")) for each in found]


def on_pypi(name: str) -> dict[str, Any]:
    """What PyPI says of a package and its newest version."""
    with urllib.request.urlopen(f"https://pypi.org/pypi/{name}/json", timeout=60) as answer:
        return json.load(answer)


def row(name: str, page: dict[str, Any]) -> tuple[str, str, str, str]:
    """A package, a version, its licence, and who says so in which field."""
    try:
        found = metadata(name)
    except PackageNotFoundError:
        said = page["info"]
        expression, classifiers = said["license_expression"], said["classifiers"]
        return name, said["version"], *licence(expression, classifiers, said["license"], " (PyPI)")
    classifiers = found.get_all("Classifier") or ()
    said = licence(found.get("License-Expression"), classifiers, found.get("License"))
    return name, found["Version"], *said


def licence(
    expression: str | None, classifiers: Sequence[str], text: str | None, where: str = ""
) -> tuple[str, str]:
    if expression:
        return expression, f"License-Expression{where}"
    classified = [
        each.rpartition(" :: ")[2]
        for each in classifiers
        if each.startswith("License :: ") and each != "License :: OSI Approved"
    ]
    if classified:
        return " AND ".join(classified), f"Classifier{where}"
    lines = (text or "").strip().splitlines()
    return (lines[0].strip(), f"License{where}") if lines else (SILENT, "")


def main() -> None:
    versions = locked(HERE / "constraints.txt")
    known = {canonicalize_name(name) for name, _ in versions}
    zoo = locked(HERE / "zoo.txt")
    versions += [each for each in zoo if canonicalize_name(each[0]) not in known]
    names = list(dict.fromkeys(name for name, _ in versions))
    with ThreadPoolExecutor(8) as threads:
        pages = dict(zip(names, threads.map(on_pypi, names), strict=True))
    rows = [row(name, pages[name]) for name in names]
    with (HERE / "licences.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("package", "version", "licence", "said by"))
        writer.writerows(rows)
    silent = [name for name, _, said, _ in rows if said == SILENT]
    print(f"{len(rows)} packages; without a licence: {', '.join(silent) or 'none'}")
    newest = [each for each in versions if each[1] == pages[each[0]]["info"]["version"]]
    faults = [f"{name} {e['id']}" for name, _ in newest for e in pages[name]["vulnerabilities"]]
    older = [" ".join(each) for each in versions if each not in newest]
    print(f"{len(newest)} of {len(versions)} versions are the newest on PyPI", end="; ")
    print(f"known vulnerabilities of these: {', '.join(faults) or 'none'}")
    print(f"not asked, as PyPI has newer ones: {', '.join(older) or 'none'}")


if __name__ == "__main__":
    sys.exit(main())
