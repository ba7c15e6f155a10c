r"""Predict with a finished run: the class, the number or the text for each row of a file.

    python -m experiments.predict --run=runs/own_data/lora/0 --input=new.csv --out=predictions.csv

--input is a CSV, TSV or JSONL file that has the columns with texts that the run was trained on, by
the same names. Labels are not needed. The columns of a benchmark are those of its files; that of
the quickstart is `text`. For a language model, a row has `prompt`, or `instruction` and perhaps
`input`; the file may also be JSON.

--out gets all columns of --input and `prediction`: the name of the class, the number, or what the
language model writes. Classes also get `probability_NAME` for each. It is a CSV or JSONL file.

The base model must be where it was; the data that the run was trained on is not needed. A run of an
earlier version did not record the names of its classes: if its data is gone, give --labels.

In Python, `experiments.load_run` does the same:

    from experiments import load_run
    classify = load_run("runs/own_data/lora/0")
    classify(["a moving film", "dull"])
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import cli
from experiments.runs.finished_run import read_record
from experiments.runs.load_run import LoadedRun, class_names, load_run
from experiments.runs.new_texts import NewTexts, read
from experiments.setup.config import parse
from experiments.setup.devices import announce
from experiments.setup.own_model import require_published
from lora_jax.data.sources.rows import read_rows
from lora_jax.files.atomic import write_atomically
from lora_jax.messages import count
from lora_jax.table import Table

_RUN = flags.DEFINE_string("run", None, "The folder of a finished run of experiments.train.")
_INPUT = flags.DEFINE_string("input", None, "The file with the texts: CSV, TSV or JSONL.")
_OUT = flags.DEFINE_string("out", None, "The file to write: CSV or JSONL.")
_MERGED = flags.DEFINE_bool(
    "merged", False, "Merge the adapter into the weights: faster, and the same but for rounding."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    None,
    "How many texts are computed at once. The default is that of the run.",
    lower_bound=1,
)
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length",
    None,
    "The most tokens of a text, or of a prompt. The default is that of the run.",
    lower_bound=1,
)
_LABELS = flags.DEFINE_list(
    "labels",
    None,
    "The names of the classes in order, for a run of an earlier version whose data is gone.",
)

PREDICTION = "prediction"
SUFFIXES = (".csv", ".jsonl")


def predict() -> None:
    folder, source, out = (Path(str(each.value)) for each in (_RUN, _INPUT, _OUT))
    record = read_record(folder)
    require_published(parse(record.config), "predict")
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out={out} is not named {' or '.join(SUFFIXES)}")
    cli.out_folder(str(out.parent))
    given = read(source, parse(record.config))
    labels = given.choices or class_names(folder, record, _LABELS.value)
    added = [PREDICTION, *(f"probability_{label}" for label in labels)]
    own = list(dict.fromkeys(column for row in given.rows for column in row.values))
    if taken := [column for column in added if column in own]:
        raise ValueError(f"--input={source} has a column '{taken[0]}' already: rename it")
    _require_own(out, source, [*own, *added])
    announce()
    run = load_run(
        folder,
        merged=_MERGED.value,
        batch_size=_BATCH_SIZE.value,
        max_length=_MAX_LENGTH.value,
        labels=_LABELS.value,
    )
    found = [
        {**row.values, **dict(zip(added, values, strict=True))}
        for row, values in zip(given.rows, _predicted(run, given, labels), strict=True)
    ]
    write_atomically(out, _content(out, [*own, *added], found).encode())
    print(f"{count(len(found), 'prediction')}: {out}")


def _predicted(run: LoadedRun, given: NewTexts, labels: Sequence[str]) -> Iterator[list[Any]]:
    """The prediction of each row, and the probabilities of its classes."""
    if not labels:
        yield from ([_rounded(each)] for each in run(given.texts))
        return
    outputs = run.outputs(given.texts)
    if given.choices:  # as accuracy takes them: by how much "right" leads
        outputs = (outputs[:, 1] - outputs[:, 0]).reshape(-1, len(given.choices))
    for row in outputs:
        shares = np.exp(row - row.max())
        shares = map(_rounded, (shares / shares.sum()).tolist())
        yield [labels[int(row.argmax())], *shares]


def _rounded(value: Any) -> Any:
    """A number with the digits that a float32 has."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _require_own(out: Path, source: Path, columns: Sequence[str]) -> None:
    """Raise a ValueError if --out is --input, or a file that this command has not written."""
    if not out.exists():
        return
    if out.samefile(source):
        raise ValueError(f"--out={out} is the file of --input: name another")
    with contextlib.suppress(ValueError, OSError):
        if any(list(row.values) == [*columns] for row in read_rows(out)[:1]):
            return
    raise ValueError(f"--out={out} exists, without the columns of these predictions: name another")


def _content(out: Path, columns: Sequence[str], found: Sequence[dict[str, Any]]) -> str:
    if out.suffix.lower() == ".csv":
        cells = ({name: _cell(value) for name, value in each.items()} for each in found)
        return Table.of_records(columns, cells).to_csv()
    return "".join(f"{_json(each)}\n" for each in found)


def _cell(value: Any) -> Any:
    """A value of a CSV file; a list or an object of a JSON file stays JSON."""
    return _json(value) if isinstance(value, dict | list | bool) else value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=float)


if __name__ == "__main__":
    flags.mark_flags_as_required(["run", "input", "out"])
    cli.main(predict)
