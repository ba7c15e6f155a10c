"""Commonsense reasoning as LLM-Adapters (Hu et al., 2023) prepared it and DoRA (Liu et al., 2024)
trains on it: eight sets of instructions, each of which names the answers to choose from.

A folder for each set holds `train.json` and `test.json`, and `commonsense_170k.json` beside them is
the training parts joined. The test parts of BoolQ, PIQA, SIQA, HellaSwag and WinoGrande are the
development parts of these sets; ARC's and OpenBookQA's are their test parts.

Only the answer is learned here; their script has the loss on the prompt as well by default
(`train_on_inputs`), and cuts texts at 256 tokens, from the end.

Questions are answered by the option with the largest log-likelihood here, which needs no sampling;
`lora_jax.metrics.text_metrics.extracted_answers` scores generated answers as the papers do.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lora_jax.data.sources import instructions
from lora_jax.data.tasks.prompts import Prompts, concatenate
from lora_jax.data.tasks.text_task import TextTask
from lora_jax.suggest import nearest

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
"""What the papers' script holds out of the joint training data, to choose by."""

_FORMAT = re.compile(r"Answer format:\s*(\S+)\s*$")


def load(name: str, folder: str | Path) -> TextTask:
    """The task `name` from a folder that holds those of the sets.

    * One of `SETS`: its train part, with its test part as validation.
    * Several, joined by `+` (`boolq+piqa`), or `all` that the folder has: trained on all that have
      a `train.json`, less 120 examples, which are the validation part; every set's test part is
      an extra part by its name (`accuracy_mean` in `score_parts` is over these).
    * `commonsense_170k`: the same of all eight, with the joint file for training.

    Raises:
      FileNotFoundError: a file that the task needs is not there.
      ValueError: an unknown name, or one line with the entry at fault.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if name in SETS:
        train = _part(name, folder, "train")
        return TextTask(name=name, train=train, validation=_part(name, folder, "test"))
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
    """The examples of one file, their ids `SOURCE/PLACE`."""
    entries = instructions.read(path, ("instruction", "output", "answer"))
    options, answers = [], []
    for number, entry in enumerate(entries, 1):
        choices = _choices(f"{path}, entry {number}", entry)
        options.append([said(choice) for choice in choices])
        answers.append(choices.index(entry["answer"]))
    return Prompts(
        name=name,
        prompts=[instructions.prompt(each["instruction"], each["input"]) for each in entries],
        completions=[each["output"] for each in entries],
        options=options,
        answers=np.array(answers),
        ids=[f"{source}/{place}" for place in range(len(entries))],
    )


def said(choice: str) -> str:
    """The text of an answer, as the training data has it."""
    return f"the correct answer is {choice}"


def _choices(where: str, entry: dict[str, str]) -> list[str]:
    """The answers to choose from, which the instruction ends with."""
    found = _FORMAT.search(entry["instruction"])
    if found is None:
        raise ValueError(f"{where}: the instruction does not end in 'Answer format: ...'")
    choices = found.group(1).split("/")
    if entry["answer"] not in choices:
        close = nearest(entry["answer"], choices)
        raise ValueError(f"{where}: the answer '{entry['answer']}' is none of {close}")
    return choices


def _part(name: str, folder: Path, part: str) -> Prompts:
    path = folder / name / f"{part}.json"
    if not path.is_file():
        end = f"; it can be evaluated on beside others: '{name}+...'" if part == "train" else ""
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
