"""Files of text-to-text tasks as they are published, small."""

import csv
import json

from lora_jax.data.sources import e2e

ANSWERS = {
    "boolq": ["true", "false"],
    "piqa": ["solution1", "solution2"],
    "social_i_qa": ["answer1", "answer2", "answer3"],
    "hellaswag": ["ending1", "ending2", "ending3", "ending4"],
    "winogrande": ["option1", "option2"],
    "ARC-Easy": ["answer1", "answer2", "answer3", "answer4"],
    "ARC-Challenge": ["answer1", "answer2", "answer3", "answer4", "answer5"],
    "openbookqa": ["answer1", "answer2", "answer3", "answer4"],
}


def entries(name, part, count):
    answers = ANSWERS[name]
    # WinoGrande's answers follow on the same line.
    gap = " " if name == "winogrande" else "\n\n"
    return [
        {
            "instruction": f"{name} {part} {i}?{gap}Answer format: {'/'.join(answers)}",
            "input": "",
            "output": f"the correct answer is {answers[i % len(answers)]}",
            "answer": answers[i % len(answers)],
        }
        for i in range(count)
    ]


def write_sets(folder, train, test, count=100):
    for part, names in (("train", train), ("test", test)):
        for name in names:
            (folder / name).mkdir(exist_ok=True)
            content = json.dumps(entries(name, part, count if part == "train" else 6))
            (folder / name / f"{part}.json").write_text(content)
    return folder


MEANINGS = [
    ("name[Café A], eatType[pub], familyFriendly[no]", ["Café A is a pub.", "A pub, Café A"]),
    ("name[B], priceRange[cheap], customer rating[5 out of 5]", ["Cheap B, rated 5.", "B", "b"]),
]


def write_e2e(folder, form, parts, meanings=MEANINGS):
    for part in parts:
        path = folder / e2e._FORMS[form][part]
        if form == "csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                rows = [[m, s] for m, sentences in meanings for s in sentences]
                csv.writer(file).writerows([["mr", "ref"], *rows])
        else:
            lines = [f"{e2e.linear(m)}||{s} \n" for m, sentences in meanings for s in sentences]
            path.write_text("".join(lines), encoding="utf-8")
    return folder
