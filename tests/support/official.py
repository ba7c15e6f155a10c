"""Small data sets in the official layouts of GLUE and SuperGLUE, and as the official downloads.

Texts have what real ones have: quotes, trailing spaces, accents, and other line separators.
"""

import hashlib
import json
import zipfile
from pathlib import Path

TRICKY = [
    'It "is" so. ',
    "One \"quote alone and it 's",
    "Café — naïve\u2028line",
    "ends with space ",
    "plain",
    "next\x85line",
]


def lines(header, rows):
    return "".join("\t".join(map(str, row)) + "\n" for row in ([header] if header else []) + rows)


def sentence(i):
    return f"{TRICKY[i % len(TRICKY)]} {i} "


def write(root, files):
    for name, content in files.items():
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8", newline="")
    return Path(root)


def cola():
    """Without a header, but for the test part."""
    rows = [["gj04", i % 2, "*" if i % 2 else "", sentence(i)] for i in range(12)]
    test = [[i, sentence(i + 20)] for i in range(3)]
    return {
        "CoLA/train.tsv": lines(None, rows[:8]),
        "CoLA/dev.tsv": lines(None, rows[8:]),
        "CoLA/test.tsv": lines(["index", "sentence"], test),
    }


def sst2():
    rows = [[sentence(i), i % 2] for i in range(10)]
    return {
        "SST-2/train.tsv": lines(["sentence", "label"], rows[:7]),
        "SST-2/dev.tsv": lines(["sentence", "label"], rows[7:]),
        "SST-2/test.tsv": lines(["index", "sentence"], [[0, sentence(30)], [1, sentence(31)]]),
    }


def pairs(folder, columns, labels, extra=()):
    """RTE, QNLI, WNLI, QQP: an index, two texts and a label."""
    head = ["index", *columns]
    rows = [[i, sentence(i), sentence(i + 40), labels[i % 2]] for i in range(10)]
    return {
        f"{folder}/train.tsv": lines([*head, "label"], rows[:6] + list(extra)),
        f"{folder}/dev.tsv": lines([*head, "label"], rows[6:]),
        f"{folder}/test.tsv": lines(head, [row[:3] for row in rows[:2]]),
    }


def rte():
    return pairs("RTE", ["sentence1", "sentence2"], ["not_entailment", "entailment"])


def wnli():
    return pairs("WNLI", ["sentence1", "sentence2"], ["0", "1"])


def qqp():
    """One row of it ends after the first question, as some of the real ones do."""
    head = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
    rows = [[i, 2 * i, 2 * i + 1, sentence(i), sentence(i + 50), i % 2] for i in range(8)]
    rows.insert(2, [90, 91, 92, "Is this"])
    test = [[i, sentence(i), sentence(i + 9)] for i in range(2)]
    return {
        "QQP/train.tsv": lines(head, rows[:6]),
        "QQP/dev.tsv": lines(head, rows[6:]),
        "QQP/test.tsv": lines(["id", "question1", "question2"], test),
    }


def stsb():
    head = ["index", "genre", "filename", "year", "old_index", "source1", "source2"]
    head += ["sentence1", "sentence2"]
    scores = ["5.000", "3.800", "0.000", "2.667", "2.11111111111111", "4.75"]
    rows = [
        [i, "news", "f", "2012", i, "none", "none", sentence(i), sentence(i + 60), scores[i]]
        for i in range(6)
    ]
    return {
        "STS-B/train.tsv": lines([*head, "score"], rows[:4]),
        "STS-B/dev.tsv": lines([*head, "score"], rows[4:]),
        "STS-B/test.tsv": lines(head, [row[:-1] for row in rows[:2]]),
    }


def mnli():
    names = ["entailment", "neutral", "contradiction"]

    def rows(start, count):
        return [
            [i, sentence(i), sentence(i + 70), names[i % 3], names[(i + 1) % 3]]
            for i in range(start, start + count)
        ]

    head = ["index", "sentence1", "sentence2", "gold_label", "label1"]
    return {
        "MNLI/train.tsv": lines(head, rows(0, 7)),
        "MNLI/dev_matched.tsv": lines(head, rows(10, 4)),
        "MNLI/dev_mismatched.tsv": lines(head, rows(20, 5)),
        "MNLI/test_matched.tsv": lines(head[:3], [row[:3] for row in rows(30, 2)]),
        "MNLI/test_mismatched.tsv": lines(head[:3], [row[:3] for row in rows(40, 2)]),
    }


def diagnostic():
    """As the site gives it out, and with labels."""
    rows = [[i, sentence(i + 3), sentence(i + 80)] for i in range(3)]
    head = ["Lexical Semantics", "Predicate-Argument Structure", "Logic", "Knowledge", "Domain"]
    names = ["contradiction", "entailment", "neutral"]
    full = [
        ["Quantifiers", "", "Negation;Disjunction", "", "News", *row[1:], name]
        for row, name in zip(rows, names, strict=True)
    ]
    return {
        "diagnostic/diagnostic.tsv": lines(["index", "sentence1", "sentence2"], rows),
        "diagnostic/diagnostic-full.tsv": lines([*head, "Premise", "Hypothesis", "Label"], full),
    }


MRPC_HEAD = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
MRPC_ROWS = [[i % 2, 100 + i, 200 + i, sentence(i), sentence(i + 90)] for i in range(9)]
MRPC_DEV = {1, 4, 6}  # rows of the one labelled file that are the development part
MRPC_TEST = [[1, 300, 400, sentence(5), sentence(6)]]


def mrpc():
    """With a byte-order mark before the header."""
    train = [row for i, row in enumerate(MRPC_ROWS) if i not in MRPC_DEV]
    dev = [row for i, row in enumerate(MRPC_ROWS) if i in MRPC_DEV]
    test = [[0, *MRPC_TEST[0][1:]]]
    return {
        "MRPC/train.tsv": "\ufeff" + lines(MRPC_HEAD, train),
        "MRPC/dev.tsv": "\ufeff" + lines(MRPC_HEAD, dev),
        "MRPC/test.tsv": "\ufeff" + lines(["index", *MRPC_HEAD[1:]], test),
    }


def objects(folder, rows, label=True):
    """train, val and test of one kind of row, as SuperGLUE has them."""

    def lines_of(part, labelled):
        kept = [{k: v for k, v in row.items() if labelled or k != "label"} for row in part]
        whole = [{**row, "idx": i} for i, row in enumerate(kept)]
        return "".join(json.dumps(row) + "\n" for row in whole)

    return {
        f"{folder}/train.jsonl": lines_of(rows[:6], True),
        f"{folder}/val.jsonl": lines_of(rows[6:], True),
        f"{folder}/test.jsonl": lines_of(rows[:2], False),
    }


def super_glue(folder):
    """A SuperGLUE task by its folder."""
    rows = {
        "BoolQ": lambda i: {
            "question": sentence(i),
            "passage": sentence(i + 1),
            "label": i % 2 > 0,
        },
        "CB": lambda i: {
            "premise": sentence(i),
            "hypothesis": sentence(i + 1),
            "label": ["neutral", "entailment", "contradiction"][i % 3],
        },
        "COPA": lambda i: {
            "premise": sentence(i),
            "choice1": f"first {i}",
            "choice2": f"second {i}",
            "question": ["cause", "effect"][i % 2],
            "label": i // 2 % 2,
        },
        "WiC": lambda i: {
            "word": f"word{i}",
            "sentence1": sentence(i),
            "sentence2": sentence(i + 1),
            "start1": 0,
            "start2": 0,
            "end1": 4,
            "end2": 4,
            "version": 1.1,
            "label": i % 2 == 0,
        },
        "RTE": lambda i: {
            "premise": sentence(i),
            "hypothesis": sentence(i + 1),
            "label": ["not_entailment", "entailment"][i % 2],
        },
    }[folder]
    return objects(folder, [rows(i) for i in range(11)])


GLUE = {
    "glue/cola": cola,
    "glue/sst2": sst2,
    "glue/mrpc": mrpc,
    "glue/qqp": qqp,
    "glue/stsb": stsb,
    "glue/mnli": mnli,
    "glue/qnli": lambda: pairs("QNLI", ["question", "sentence"], ["entailment", "not_entailment"]),
    "glue/rte": rte,
    "glue/wnli": wnli,
    "glue/ax": lambda: {**mnli(), **diagnostic()},
}
SUPER_GLUE = {
    f"super_glue/{folder.lower()}": lambda folder=folder: super_glue(folder)
    for folder in ("BoolQ", "CB", "COPA", "WiC", "RTE")
}
LAYOUT = {**GLUE, **SUPER_GLUE}


def downloads(name, folder):
    """The official downloads of a task in `folder`; returns {file: (size, SHA-256)}."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if name == "glue/mrpc":
        dev = [[row[1], row[2]] for i, row in enumerate(MRPC_ROWS) if i in MRPC_DEV]
        files = {
            "msr_paraphrase_train.txt": "\ufeff" + lines(MRPC_HEAD, MRPC_ROWS),
            "msr_paraphrase_test.txt": "\ufeff" + lines(MRPC_HEAD, MRPC_TEST),
            "data_mrpc_dev_ids.tsv": lines(None, dev),
        }
        write(folder, files)
    elif name == "glue/ax":
        bare, full = diagnostic().values()
        write(folder, {"tsvsWithoutLabels_AX.tsv": bare, "diagnostic-full.tsv": full})
        files = ["tsvsWithoutLabels_AX.tsv"]
    else:
        content = LAYOUT[name]()
        archive = next(iter(content)).split("/")[0] + ".zip"
        archive = "QNLIv2.zip" if archive == "QNLI.zip" else archive
        with zipfile.ZipFile(folder / archive, "w") as file:
            for path, text in content.items():
                file.writestr(path, text)
        files = [archive]
    return {
        file: (len(data := (folder / file).read_bytes()), hashlib.sha256(data).hexdigest())
        for file in files
    }
