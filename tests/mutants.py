"""Which faults in the code the tests catch: `python tests/mutants.py`.

`mutants.toml` has one-line faults of the code: what a file has, what is put in its place, and the
test files that ought to fail. Each fault is made in a copy of the repository, in which those tests
run; nothing in the repository itself changes. A fault under which all of them pass is alive: the
tests have a gap there, or the fault changes nothing that can be seen. Where a wrong result would be
silent and serious, the fault is `grave`, and the command fails if one of these is alive.

    python tests/mutants.py                     all faults, two at a time
    python tests/mutants.py --only=kv_cache     those whose file or text matches
    python tests/mutants.py --sample=30         so many of them, in minutes
    python tests/mutants.py --check             only that every fault can be made
    python tests/mutants.py --baseline          the same tests without any fault: all must pass
    python tests/mutants.py --draw=40 --seed=0  new faults, drawn by operator, to be given tests

A fault is caught where a test fails, where the tests cannot even be imported, and where they crash
or do not end in time. Tests of `make parity` do not count. Where an entry of `tests` has a `-k`
expression, each entry is a run of its own, and the first that fails ends the fault.
"""

import argparse
import ast
import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import os
import queue
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).with_suffix(".toml")
SOURCES = ("lora_jax", "variants", "experiments", "configs")
CAUGHT, ALIVE, NO_TESTS = "caught", "ALIVE", "no tests"

SWAPS = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*")}
SWAPS |= {ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")}
SWAPS |= {ast.Eq: ("==", "!="), ast.NotEq: ("!=", "==")}
SWAPS |= {ast.And: ("and", "or"), ast.Or: ("or", "and")}
NAMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum"}


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault, and the tests that ought to catch it."""

    file: str
    before: str
    after: str
    tests: tuple[str, ...]
    grave: bool = False
    drawn: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.before.strip()}  ->  {self.after.strip() or '(nothing)'}"

    @property
    def runs(self) -> list[list[str]]:
        """The arguments of each run of pytest."""
        each = [shlex.split(entry) for entry in self.tests]
        return each if any(len(one) > 1 for one in each) else [list(itertools.chain(*each))]

    def problem(self) -> str:
        """Why it cannot be made or tested, or nothing."""
        path = ROOT / self.file
        if not path.is_file():
            return "there is no such file"
        source = path.read_text(encoding="utf-8")
        if (count := source.count(self.before)) != 1:
            return f"its text occurs {count} times"
        if self.before == self.after:
            return "it changes nothing"
        try:
            ast.parse(source.replace(self.before, self.after))
        except SyntaxError as error:
            return f"the file could not be parsed: {error}"
        lacking = [run.split()[0] for run in self.tests if not (ROOT / run.split()[0]).is_file()]
        return f"there is no {', '.join(lacking)}" if lacking else "" if self.tests else "no tests"


@dataclasses.dataclass(frozen=True)
class Result:
    """How a fault, or a run without one, ended, and by which test."""

    outcome: str
    seconds: float
    by: str = ""


class Workshop:
    """Copies of the repository in which tests run, each for one fault at a time."""

    def __init__(self, folder: Path, copies: int, timeout: float):
        self._timeout = timeout
        self._free: queue.Queue[Path] = queue.Queue()
        self._running: set[subprocess.Popen] = set()
        self._lock, self._closed = threading.Lock(), False
        listed = subprocess.run(
            ["git", "ls-files", "-coz", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        for number in range(copies):
            copy = folder / f"copy{number}"
            for name in filter(None, listed.split("\0")):
                if (ROOT / name).is_file():  # not one that was deleted since the last commit
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, copy / name)
            _require_own_code(copy)
            self._free.put(copy)

    def test(self, runs: list[list[str]], fault: Fault | None = None) -> Result:
        """Run tests, with a fault or without, up to the first that fails."""
        copy, start = self._free.get(), time.perf_counter()
        left = copy / fault.file if fault else None
        original = left.read_text(encoding="utf-8") if left else ""
        try:
            if fault and left:
                left.write_text(original.replace(fault.before, fault.after), encoding="utf-8")
            for run in runs:
                outcome, by = self._pytest(copy, run)
                if outcome != ALIVE:
                    return Result(outcome, time.perf_counter() - start, by)
            return Result(ALIVE, time.perf_counter() - start)
        finally:
            if left:
                left.write_text(original, encoding="utf-8")
            self._free.put(copy)

    def _pytest(self, copy: Path, run: list[str]) -> tuple[str, str]:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly"]
        command += ["-m", "not parity", *run]
        with self._lock:
            if self._closed:
                raise KeyboardInterrupt
            process = subprocess.Popen(
                command, cwd=copy, env=_environment(copy), start_new_session=True, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            self._running.add(process)
        try:
            output, _ = process.communicate(timeout=self._timeout)
        except subprocess.TimeoutExpired:
            return CAUGHT, "hangs"
        finally:
            _kill(process)  # with whatever it started
            self._running.discard(process)
        if process.returncode == 0:
            return ALIVE, ""
        if process.returncode == 5:
            return NO_TESTS, " ".join(run)
        found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
        return CAUGHT, found[1] if found else f"pytest ended with {process.returncode}"

    def close(self) -> None:
        """End what runs, and start no more."""
        with self._lock:
            self._closed = True
            for process in list(self._running):
                _kill(process)


def _environment(copy: Path) -> dict[str, str]:
    """For processes that import a copy's code, without bytecode that may be of another fault."""
    return {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}


def _require_own_code(copy: Path) -> None:
    """Raise unless a copy's tests are of its own code, and not of an installed checkout."""
    command = [sys.executable, "-c", "import lora_jax; print(lora_jax.__file__)"]
    found = subprocess.check_output(command, cwd=copy, env=_environment(copy), text=True)
    if not Path(found.strip()).resolve().is_relative_to(copy.resolve()):
        raise RuntimeError(f"tests in {copy} would be of {found.strip()}")


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read(path: Path = DATA) -> list[Fault]:
    """The faults of a file."""
    with path.open("rb") as file:
        found = tomllib.load(file)["fault"]
    return [Fault(**{**each, "tests": tuple(each["tests"])}) for each in found]


def draw(count: int, seed: int) -> Iterator[Fault]:
    """Faults drawn by operator: a folder after another, in it any file, in that any operator."""
    rng = random.Random(seed)
    files: dict[str, list[str]] = collections.defaultdict(list)
    for path in sorted(each for top in SOURCES for each in (ROOT / top).rglob("*.py")):
        files[str(path.parent.relative_to(ROOT))].append(str(path.relative_to(ROOT)))
    seen: set[tuple[str, ...]] = set()
    for folder in itertools.cycle(rng.sample(sorted(files), len(files))):
        if len(seen) == count:
            return
        file = rng.choice(files[folder])
        source = (ROOT / file).read_text(encoding="utf-8")
        faults = [(b, a) for b, a in changes(source) if source.count(b) == 1]
        if faults and (chosen := (file, *rng.choice(faults))) not in seen:
            seen.add(chosen)
            yield Fault(*chosen, tests=(), drawn=True)


def changes(source: str) -> list[tuple[str, str]]:
    """Every line of a module with an operator or a constant, and the line with another."""
    lines, found = source.splitlines(), []
    for node in _code(ast.parse(source)):
        for row, start, end, text in _swapped(node, lines):
            line = lines[row - 1]
            if line.isascii():  # columns are counted in bytes
                found.append((line.strip(), (line[:start] + text + line[end:]).strip()))
    return found


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """All that is computed: no annotations, texts, or errors that are raised."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            own_name = isinstance(child, ast.If) and "__name__" in ast.unparse(child.test)
            if isinstance(child, ast.AST) and not (
                isinstance(child, ast.Raise | ast.JoinedStr) or own_name
            ):
                yield child
                yield from _code(child)


def _swapped(node: Any, lines: list[str]) -> Iterator[tuple[int, int, int, str]]:
    """Line, first and last column, and the new text of what can be swapped in a node."""
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            yield from _between(left, op, right, lines)
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            yield from _between(left, op, right, lines)
        case ast.BoolOp(op=op, values=[left, right, *_]):
            yield from _between(left, op, right, lines)
        case ast.UnaryOp(op=ast.Not()):
            yield node.lineno, node.col_offset, node.col_offset + len("not "), ""
        case ast.Constant(value=bool(value)):
            yield node.lineno, node.col_offset, node.end_col_offset, str(not value)
        case ast.Constant(value=int(value)):
            yield node.lineno, node.col_offset, node.end_col_offset, str(value + 1)
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in NAMES:
            end = node.end_col_offset
            yield node.end_lineno, end - len(name), end, NAMES[name]


def _between(left: Any, op: Any, right: Any, lines: list[str]) -> Iterator[tuple]:
    if type(op) in SWAPS and left.end_lineno == right.lineno:
        old, new = SWAPS[type(op)]
        start = lines[right.lineno - 1].find(old, left.end_col_offset, right.col_offset)
        if start >= 0:
            yield right.lineno, start, start + len(old), new


def as_toml(fault: Fault) -> str:
    """The fault as `mutants.toml` has it."""
    values = {
        name: value for name, value in dataclasses.asdict(fault).items() if value is not False
    }
    written = (
        f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()
    )
    return "\n".join(["[[fault]]", *written, ""])


def main() -> int:
    """The exit code: 1 where a grave fault is alive or a baseline fails, 2 where a fault is bad."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=2, help="faults that are tested at a time")
    parser.add_argument("--only", default="", help="a regular expression: of a fault's line")
    parser.add_argument("--grave", action="store_true", help="only the grave faults")
    parser.add_argument("--out", type=Path, help="a JSON file for the outcomes")
    parser.add_argument("--timeout", type=float, default=900, help="seconds, of a run of pytest")
    parser.add_argument("--check", action="store_true", help="only check that faults can be made")
    parser.add_argument("--baseline", action="store_true", help="the tests alone, without faults")
    parser.add_argument("--draw", type=int, help="print so many new faults")
    parser.add_argument("--sample", type=int, help="only so many faults, drawn from all")
    parser.add_argument("--seed", type=int, default=0, help="of --draw and --sample")
    flags = parser.parse_args()
    if flags.draw:
        print("\n".join(map(as_toml, draw(flags.draw, flags.seed))))
        return 0
    faults = read()
    bad = [f"{fault}: {problem}" for fault in faults if (problem := fault.problem())]
    if bad or flags.check:
        print("\n".join(bad) or f"{len(faults)} faults can be made")
        return 2 if bad else 0
    faults = [each for each in faults if re.search(flags.only, str(each))]
    faults = [each for each in faults if each.grave or not flags.grave]
    if flags.sample is not None:
        faults = random.Random(flags.seed).sample(faults, min(flags.sample, len(faults)))
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        workshop = Workshop(Path(folder), min(flags.jobs, len(faults)), flags.timeout)
        with concurrent.futures.ThreadPoolExecutor(flags.jobs) as pool:
            try:
                if flags.baseline:
                    return _baseline(pool, workshop, faults)
                return _report(faults, _all(pool, workshop, faults), flags.out)
            finally:
                workshop.close()
                pool.shutdown(cancel_futures=True)


def _all(pool: Any, workshop: Workshop, faults: list[Fault]) -> dict[Fault, Result]:
    waiting = {pool.submit(workshop.test, each.runs, each): each for each in faults}
    results = {}
    for done in concurrent.futures.as_completed(waiting):
        fault, result = waiting[done], done.result()
        results[fault] = result
        print(f"{result.outcome:8} {result.seconds:5.0f} s  {fault}  {result.by}", flush=True)
    return results


def _baseline(pool: Any, workshop: Workshop, faults: list[Fault]) -> int:
    runs = dict.fromkeys(entry for fault in faults for entry in fault.tests)
    waiting = {pool.submit(workshop.test, [shlex.split(run)]): run for run in runs}
    failed = 0
    for done in concurrent.futures.as_completed(waiting):
        result = done.result()
        failed += result.outcome != ALIVE
        said = "passed" if result.outcome == ALIVE else f"FAILED {result.by}"
        print(f"{said} {result.seconds:.0f} s  {waiting[done]}", flush=True)
    return 1 if failed else 0


def _report(faults: list[Fault], results: dict[Fault, Result], out: Path | None) -> int:
    """Print what was caught, by folder, and what was not."""
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for fault in faults:
        counts[str(Path(fault.file).parent)][results[fault].outcome] += 1
        counts["all"][results[fault].outcome] += 1
    print(f"\n{'':28}{'faults':>8}{'caught':>8}{'alive':>8}")
    for name in sorted(counts, key=lambda name: (name == "all", name)):
        own = counts[name]
        print(f"{name:28}{own.total():8}{own[CAUGHT]:8}{own[ALIVE]:8}")
    left = [fault for fault in faults if results[fault].outcome != CAUGHT]
    for fault in left:
        print(f"{results[fault].outcome}{', grave' * fault.grave}: {fault}")
    if out is not None:
        kept = ("file", "before", "after", "grave", "drawn")
        rows = [
            {name: getattr(each, name) for name in kept} | dataclasses.asdict(results[each])
            for each in faults
        ]
        out.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(any(fault.grave for fault in left))


if __name__ == "__main__":
    sys.exit(main())
