"""Writes tests/fixtures/tokens_minilm.json: token ids by transformers' own tokenizer.

Needs transformers and the folder of all-MiniLM-L6-v2:

    python tests/support/make_fixtures/tokens.py FOLDER
"""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer, __version__

SINGLES = [
    "a gorgeous , witty , seductive movie .",
    "Capital LETTERS and Straße, İstanbul, ÅNGSTRÖM",
    "naïve café, Ångström; el ladrón de orquídeas",
    "unaffable electroencephalographically pneumonoultramicroscopicsilicovolcanoconiosis",
    "电影很好看 but 退屈な映画, 지루한 영화, фильм, फ़िल्म, فيلم",
    "emoji 🎬🍿 👩‍👩‍👧 and zero\u200bwidth, tab\tand\nnewline, nbsp\u00a0here, c1 \x97 control",
    "don't won't it's 3.14 $1,000.00 50% e-mail@example.org http://x.y/z?a=b#c",
    "[CLS] literal [SEP] special [MASK] tokens [PAD] [UNK] [sep]",
    "x" * 150,
    "ﬁne ½ ﷽ \ufffd \u0000 soft\u00adhyphen",
    "",
    "   ",
    ".",
    "word " * 200,
]
PAIRS = [
    ("the film is long", "it runs for three hours"),
    ("a short one", "and " * 60),
    ("much " * 60, "a short one"),
    ("even " * 40, "odd " * 40),
    ("", "only the second"),
    ("only the first", ""),
    ("", ""),
    ("Ünïcödé 电影", "🎬 popcorn [SEP] again"),
]
MAX_LENGTHS = [5, 16, 17, 128, 512]


def main(folder: str):
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(*texts: str, max_length: int) -> list[list[int]]:
        # As a batch of one: a lone call takes a pair with an empty second text for a single text.
        batches = [[text] for text in texts]
        out = tokenizer(*batches, max_length=max_length, truncation="longest_first", padding=False)
        return [out["input_ids"][0], out["token_type_ids"][0]]

    fixture = {
        "made_by": f"tests/support/make_fixtures/tokens.py, transformers {__version__}",
        "pad_id": tokenizer.pad_token_id,
        "singles": SINGLES,
        "pairs": PAIRS,
        "encoded": [  # [input_ids, token_type_ids] of each
            {
                "max_length": max_length,
                "singles": [encode(text, max_length=max_length) for text in SINGLES],
                "pairs": [encode(*pair, max_length=max_length) for pair in PAIRS],
            }
            for max_length in MAX_LENGTHS
        ],
    }
    path = Path(__file__).parents[2] / "fixtures" / "tokens_minilm.json"
    path.write_text(json.dumps(fixture, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
