"""Malformed input, made by hypothesis: it is taken, or refused in one clear line, and never run.

Clear is an error of a class that `experiments.cli` turns into a line (ValueError, OSError), whose
message is one line, raised by this project's own code: not by a library below it, whose words say
nothing about the user's file.
"""

import dataclasses
import json
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st

from experiments.soaking import samples
from experiments.soaking.damage import hidden

ROOT = Path(__file__).parents[2]
OWN = tuple(str(ROOT / name) for name in ("lora_jax", "variants", "experiments", "configs"))
EXECUTES = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")
"""What Python reports of a process that executes something, or calls another machine."""


@dataclasses.dataclass(frozen=True)
class Tried:
    """One malformed input."""

    kind: str
    what: str
    outcome: str
    """`taken`, `refused`, `unclear` or `executed`."""
    said: str


SETTINGS = (
    *("seed", "targets", "also_train", "start_from", "nothing", "train.nothing.more"),
    *("variant", "variant.name", "variant.rank", "variant.alpha", "model.name", "model.dropout"),
    *("data.train", "data.files.label", "train.epochs", "train.batch_size", "train.select"),
    *("optimizer.learning_rate", "optimizer.clip", "quantize.storage", "quantize.patterns"),
)
"""The settings that flags set."""

SLOW = (
    hypothesis.HealthCheck.too_slow,
    hypothesis.HealthCheck.data_too_large,
    hypothesis.HealthCheck.filter_too_much,
    hypothesis.HealthCheck.large_base_example,
)
"""What hypothesis would complain of, and what matters only for tests that fail."""

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["", "lora", "../..", "/", "x" * 5000, "\ud800", "$(true)", "__import__('os')"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "remove", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=4,
)
_PATTERNS = st.text(max_size=12) | st.from_regex(r"[(\[{*+?|)\]}^$.\\a-z/]{1,12}", fullmatch=True)
_FLAGS = st.lists(
    st.tuples(
        st.sampled_from(SETTINGS),
        st.text(max_size=10)
        | _JSON.map(repr)
        | st.sampled_from(["1e999", "nan", "()", "('a',)", "{}", "1_0", "--", "=", "exec('1')"]),
    ).map(lambda each: f"--config.{each[0]}={each[1]}"),
    min_size=1,
    max_size=3,
)


def soak(count: int, seed: int) -> list[Tried]:
    """Try `count` inputs of all kinds, the same for the same seed."""
    kinds = samples.kinds()
    share, rest = divmod(count, len(kinds) + 2)
    found = []
    with _watched() as executed:
        for number, kind in enumerate(kinds):
            found += _of_kind(kind, share + (number < rest), seed, executed)
        texts = ("flags", _FLAGS, samples.read_flags), ("pattern", _PATTERNS, samples.read_pattern)
        for number, (name, strategy, read) in enumerate(texts, len(kinds)):
            examples = _drawn(strategy, share + (number < rest), seed)
            found += [
                _try(name, str(each), lambda e=each, r=read: r(e), executed) for each in examples
            ]
    return found


def _of_kind(kind: samples.Kind, count: int, seed: int, executed: list[str]) -> Iterator[Tried]:
    """Inputs of one kind: one file of a valid folder is spoiled, as bytes or as JSON."""
    if not count:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kind.make(folder)
        whole = {file: (folder / file).read_bytes() for file in kind.files}
        first = _try(kind.name, "as it should be", lambda: kind.read(folder), executed)
        refuses = kind.name == "pickle"  # it is refused as it is
        if first.outcome != ("refused" if refuses else "taken"):
            raise RuntimeError(f"the sample of {kind.name} is {first.outcome}: {first.said}")
        is_json = {file: file.endswith(".json") for file in kind.files}
        spoiled = st.sampled_from(kind.files).flatmap(
            lambda file: st.tuples(
                st.just(file),
                (_json_edits(whole[file]) | _byte_edits(whole[file]))
                if is_json[file]
                else _byte_edits(whole[file]),
            )
        )
        for file, content in _drawn(spoiled, count, seed):
            for each, right in whole.items():
                (folder / each).write_bytes(content if each == file else right)
            found = _try(
                kind.name, f"{file} of {len(content)} bytes", lambda: kind.read(folder), executed
            )
            if (folder / samples.MARK).exists():
                found = dataclasses.replace(found, outcome="executed")
            yield dataclasses.replace(found, said=found.said.replace(name, "..."))


def _drawn(strategy: st.SearchStrategy, count: int, seed: int) -> list[Any]:
    """Examples of a strategy."""
    examples: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=SLOW,
    )
    @hypothesis.given(strategy)
    def keep(example: Any) -> None:
        examples.append(example)

    keep()
    return examples[:count]


def _byte_edits(content: bytes) -> st.SearchStrategy[bytes]:
    return _EDITS.map(lambda edits: _edited(content, edits))


def _edited(content: bytes, edits: Sequence[tuple[str, float, bytes]]) -> bytes:
    found = bytearray(content)
    for how, where, given in edits:
        place = int(where * len(found))
        if how == "flip" and found:
            found[place] ^= given[0] or 1
        elif how == "cut":
            del found[place:]
        elif how == "insert":
            found[place:place] = given
        elif how == "remove":
            del found[place : place + len(given)]
        else:
            found[place:place] = found[place : place + 40]
    return bytes(found)


def _json_edits(content: bytes) -> st.SearchStrategy[bytes]:
    """A JSON text in which one value is another one, or is missing."""
    value = json.loads(content)
    places = list(_places(value))
    return st.tuples(st.sampled_from(places), _JSON, st.booleans()).map(
        lambda drawn: json.dumps(_replaced(value, *drawn)).encode()
    )


def _places(value: Any, where: tuple = ()) -> Iterator[tuple]:
    yield where
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(each, (*where, key))


def _replaced(value: Any, where: tuple, other: Any, keep: bool) -> Any:
    if not where:
        return other
    key, *rest = where
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k != key or keep or rest}
        return (
            {**kept, key: _replaced(value[key], tuple(rest), other, keep)} if keep or rest else kept
        )
    changed = list(value)
    changed[key] = _replaced(value[key], tuple(rest), other, keep)
    return changed


def _try(kind: str, what: str, read: Callable[[], Any], executed: list[str]) -> Tried:
    executed.clear()
    outcome, said = "taken", ""
    try:
        with warnings.catch_warnings(), hidden():
            warnings.simplefilter("ignore")
            read()
    except (ValueError, OSError) as error:
        said = str(error)
        own = isinstance(error, OSError) or _raised_here(error)
        clear = own and said.strip() and "\n" not in said
        outcome = "refused" if clear else "unclear"
        said = said if clear else f"{_place(error)}: {type(error).__name__}: {error}"
    except Exception as error:
        outcome, said = "unclear", f"{_place(error)}: {type(error).__name__}: {error}"
    if executed:
        outcome, said = "executed", executed[0]
    return Tried(kind, what, outcome, said)


def _raised_here(error: BaseException) -> bool:
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(OWN)


def _place(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)
    own = [each for each in last if each.filename.startswith(OWN)]
    shown = own[-1] if own else last[-1]
    return f"{Path(shown.filename).name}:{shown.lineno}"


class _watched:
    """A list of what was executed, while the block runs; hooks of Python cannot be taken back."""

    def __enter__(self) -> list[str]:
        self._found: list[str] = []
        self._on = True
        sys.addaudithook(self._hook)
        return self._found

    def __exit__(self, *_: Any) -> None:
        self._on = False

    def _hook(self, event: str, given: tuple) -> None:
        if self._on and event in EXECUTES:
            self._found.append(f"{event} {given!r:.100}")


def counts(found: Sequence[Tried]) -> list[dict[str, Any]]:
    """A row for each kind: how many inputs were taken, refused, unclear or executed."""
    rows = []
    for name in dict.fromkeys(each.kind for each in found):
        tally = Counter(each.outcome for each in found if each.kind == name)
        head = {"kind": name, "tried": tally.total()}
        outcomes = ("taken", "refused", "unclear", "executed")
        rows.append(head | {outcome: tally[outcome] for outcome in outcomes})
    return rows


def wrong(found: Sequence[Tried]) -> list[str]:
    """One line for each input that was executed, or refused in another way than by a clear line."""
    bad = [each for each in found if each.outcome in ("unclear", "executed")]
    return [
        f"{each.kind}, {each.what}: {each.outcome}, {' '.join(each.said.split())}" for each in bad
    ]
