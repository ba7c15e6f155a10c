"""E2E NLG (Novikova et al., 2017): write a sentence that expresses a meaning representation.

It is read from the official CSV files, or from the text files of LoRA's repository (Hu et al.,
2021), whose sentences are tokenised with spaces. Both give the same prompts, except for spaces in
prices (`£20-25`, `£ 20 - 25`). As in LoRA's code (`examples/NLG/src/gpt2_encode.py`), a prompt ends
with GPT-2's end-of-text token, and a completion begins with a space.

The train part has one example for each sentence. Parts to evaluate on have one example for each
meaning representation: all its sentences are references and the first is the completion. The loss
and perplexity of such a part are therefore those of the first references.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_jax.data.examples import Prompts
from lora_jax.data.sources import rows
from lora_jax.data.task import TextTask
from lora_jax.messages import naming, require_known

NAMES = ("e2e", "e2e_dev")
SEPARATOR = "<|endoftext|>"
HELD_OUT = 50
FILES = ("form", "separator")
SITE = "https://github.com/tuetschek/e2e-dataset"

# LoRA's files are used first if a folder has both.
_FORMS = {
    "txt": {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"},
    "csv": {"train": "trainset.csv", "validation": "devset.csv", "test": "testset_w_refs.csv"},
}
_SLOT = re.compile(r"([^,\[\]]+)\[([^\]]*)\]")
# The names that LoRA's files use for slots of the official files.
_SLOTS = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}


def load_texts(
    name: str, folder: str | Path | None, files: Mapping[str, str], validation: int = 0
) -> TextTask:
    """Load the task `name` from a folder.

    * `e2e`: 42,061 sentences to train on, 547 representations to validate and 630 to test on
      (the extra part `test`).
    * `e2e_dev`: trained on the development part, less 50 of its representations to validate on;
      `test` as above. For folders without the train part; its scores do not follow the protocol.

    Args:
      files: `form` is `txt` or `csv`; without it, `txt` if the folder has all its parts, else
        `csv`. `separator` is the text between prompt and completion. GPT-2's end of text is a
        single token for GPT-2, but several tokens for other tokenizers, for which a line end is
        better.
      validation: hold out this many examples of train as the only part to evaluate on.

    Raises:
      FileNotFoundError: one line that names the missing part.
      ValueError: an unknown name or form, or a line that cannot be read.
    """
    require_known(name, NAMES, f"unknown E2E data '{name}'")
    task = _load(name, rows.folder_of("e2e", folder), **files)
    return task.hold_out(validation) if validation else task


def _load(name: str, folder: Path, form: str = "", separator: str = SEPARATOR) -> TextTask:
    if form:
        require_known(form, _FORMS, f"unknown form '{form}' of E2E")
    needed = ("validation", "test") if name == "e2e_dev" else ("train", "validation", "test")
    found = {part: _read(path) for part, path in _paths(folder, form, needed).items()}
    test = _grouped(f"{name}/test", found["test"], separator)
    if name == "e2e_dev":
        train = _pairs(f"{name}/train", found["validation"], separator)
        held = TextTask(name, train, test).hold_out(HELD_OUT)
        return TextTask(name, held.train, held.validation, {"test": test})
    return TextTask(
        name,
        _pairs(f"{name}/train", found["train"], separator),
        _grouped(f"{name}/validation", found["validation"], separator),
        {"test": test},
    )


def linear(representation: str) -> str:
    """Convert `name[A], area[B]` to the format of LoRA's files, `name : A | area : B`.

    Raises `ValueError` if it is not a meaning representation.
    """
    slots = _SLOT.findall(representation)
    if not slots or ", ".join(f"{name.strip()}[{value}]" for name, value in slots) != (
        representation.strip()
    ):
        raise ValueError(
            f"'{representation}' is not a meaning representation, such as name[...], area[...]"
        )
    return " | ".join(
        f"{_SLOTS.get(name.strip(), name.strip())} : {value}" for name, value in slots
    )


def _paths(folder: Path, form: str, needed: Sequence[str]) -> dict[str, Path]:
    missing = {}
    for each in [form] if form else _FORMS:
        paths = {part: folder / _FORMS[each][part] for part in needed}
        missing[each] = [path.name for path in paths.values() if not path.is_file()]
        if not missing[each]:
            return paths
    named = " nor ".join(", ".join(names) for names in missing.values())
    other = "; data 'e2e_dev' trains on the development part instead" if "train" in needed else ""
    raise FileNotFoundError(f"{folder} has {'no' if form else 'neither'} {named}{other}")


def _read(path: Path) -> list[tuple[str, str]]:
    """Representations in the format of LoRA's files, each with one sentence, in order."""
    if path.suffix == ".csv":
        return [_row(row) for row in rows.read_rows(path)]
    with naming(f"{path} is not UTF-8", UnicodeDecodeError):
        lines = path.read_text(encoding="utf-8").split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = line.strip().split("||")
        if len(parts) != 2:
            raise ValueError(f"{path}, line {number} is not 'representation||sentence'")
        found.append((parts[0], parts[1].strip()))
    return found


def _row(row: rows.Row) -> tuple[str, str]:
    representation, sentence = row.text("mr"), row.text("ref")
    with naming(row.where):
        return linear(representation), sentence.strip()


def _pairs(name: str, found: Sequence[tuple[str, str]], separator: str) -> Prompts:
    return Prompts(
        name=name,
        prompts=[representation + separator for representation, _ in found],
        completions=[f" {sentence}" for _, sentence in found],
        ids=[str(place) for place in range(len(found))],
    )


def _grouped(name: str, found: Sequence[tuple[str, str]], separator: str) -> Prompts:
    sentences: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for place, (representation, sentence) in enumerate(found):
        sentences.setdefault(representation, []).append(sentence)
        places.setdefault(representation, str(place))
    return Prompts(
        name=name,
        prompts=[representation + separator for representation in sentences],
        completions=[f" {each[0]}" for each in sentences.values()],
        references=list(sentences.values()),
        ids=list(places.values()),
    )
