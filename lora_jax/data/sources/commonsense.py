"""Commonsense reasoning: eight sets of instructions, each naming the answers to choose from.

LLM-Adapters (Hu et al., 2023) prepared these sets, and DoRA (Liu et al., 2024) trains on them.

Each set has a folder with `train.json` and `test.json`; `commonsense_170k.json` beside the folders
holds the joined training parts. The test parts of BoolQ, PIQA, SIQA, HellaSwag and WinoGrande are
the development parts of these sets; those of ARC and OpenBookQA are their test parts.

Here the loss is on the answer only. The papers' script also has it on the prompt by default
(`train_on_inputs`), and truncates texts to 256 tokens, at the end.

Here the answer to a question is the option with the largest log-likelihood, without sampling.
`lora_jax.data.metrics.text_metrics.extracted_answers` scores generated answers as the papers do.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lora_jax.data.examples import Prompts, concatenate
from lora_jax.data.sources import alpaca, rows
from lora_jax.data.task import TextTask
from lora_jax.messages import nearest

SETS = (
    "boolq",
    "piqa",
    "social_i_qa",
    "hellaswag",
    "winogrande",
    "ARC-Easy",
    "ARC-Challenge",
    "openbookqa",
)
JOINT = "commonsense_170k"
ALL = "all"
HELD_OUT = 120
"""How many examples the papers' script holds out of the joint training data, to select by."""

FILES = ()
SITE = "https://github.com/AGI-Edgerunners/LLM-Adapters"
_FORMAT = re.compile(r"Answer format:\s*(\S+)\s*$")


def load_texts(
    name: str, folder: str | Path | None, files: Mapping[str, str], validation: int = 0
) -> TextTask:
    """Load the task `name` from a folder that holds the folders of the sets.

    * One of `SETS`: trained on its train part, validated on its test part.
    * Several sets joined by `+` (`boolq+piqa`), or `all` (every set in the folder): trained on the
      sets with a `train.json`, less 120 examples, which are the validation part. Every set's test
      part is an extra part with the set's name (`accuracy_mean` in `score_parts` is over these).
    * `commonsense_170k`: the same for all eight sets, trained on the joint file.

    With `validation`, this many examples of train are the validation part instead, and there is no
    extra part.

    Raises:
      FileNotFoundError: a needed file does not exist.
      ValueError: an unknown name, or one line that names the wrong entry.
    """
    task = _load(name, rows.folder_of("commonsense", folder))
    return task.hold_out(validation) if validation else task


def _load(name: str, folder: Path) -> TextTask:
    if name in SETS:
        return TextTask(name, _part(name, folder, "train"), _part(name, folder, "test"))
    sets = _sets(name, folder)
    if name == JOINT:
        train = examples(f"{JOINT}/train", folder / f"{JOINT}.json", JOINT)
    else:
        trained = [each for each in sets if (folder / each / "train.json").is_file()]
        if not trained:
            raise FileNotFoundError(f"{folder} has no train.json for {', '.join(sets)}")
        train = concatenate(f"{name}/train", [_part(each, folder, "train") for each in trained])
    tests = {each: _part(each, folder, "test") for each in sets}
    held = TextTask(name, train, train).hold_out(HELD_OUT)
    return TextTask(name, held.train, held.validation, extra=tests)


def examples(name: str, path: Path, source: str) -> Prompts:
    """The examples of one file; their ids are `SOURCE/PLACE`."""
    found = alpaca.read(path, ("instruction", "output", "answer"))
    entries = [row.values for row in found]
    choices = [_choices(row) for row in found]
    return Prompts(
        name=name,
        prompts=[alpaca.prompt(each["instruction"], each["input"]) for each in entries],
        completions=[each["output"] for each in entries],
        options=[[said(choice) for choice in each] for each in choices],
        answers=np.array([c.index(e["answer"]) for c, e in zip(choices, entries, strict=True)]),
        ids=[f"{source}/{place}" for place in range(len(entries))],
    )


def said(choice: str) -> str:
    """The text of an answer, as in the training data."""
    return f"the correct answer is {choice}"


def _choices(row: rows.Row) -> list[str]:
    """The possible answers, which are at the end of the instruction."""
    found, answer = _FORMAT.search(row.values["instruction"]), row.values["answer"]
    if found is None:
        raise ValueError(f"{row.where}: the instruction does not end in 'Answer format: ...'")
    choices = found.group(1).split("/")
    if answer not in choices:
        raise ValueError(
            f"{row.where}: the answer '{answer}' is none of {nearest(answer, choices)}"
        )
    return choices


def _part(name: str, folder: Path, part: str) -> Prompts:
    path = folder / name / f"{part}.json"
    if not path.is_file():
        end = f"; to evaluate on it, train on others: '{name}+...'" if part == "train" else ""
        raise FileNotFoundError(f"{folder} has no {name}/{part}.json{end}")
    return examples(f"{name}/{part}", path, name)


def _sets(name: str, folder: Path) -> Sequence[str]:
    """The sets of a joint task, in the order of `SETS`."""
    if name == JOINT:
        return SETS
    if name == ALL:
        there = [each for each in SETS if (folder / each / "test.json").is_file()]
        if not there:
            raise FileNotFoundError(f"{folder} has no test.json of {', '.join(SETS)}")
        return there
    named = name.split("+")
    for each in named:
        if each not in SETS:
            close = nearest(each, (*SETS, JOINT, ALL))
            raise ValueError(f"unknown commonsense set '{each}'; nearest: {close}")
    return [each for each in SETS if each in named]
