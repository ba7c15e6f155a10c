"""Small tokenizers as models publish them, what a GGUF file says of them, and texts to try."""

import functools
import io
import json
import random

import tokenizers
from gguf_files import write_gguf
from tokenizers import models, pre_tokenizers, trainers

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6

CORPUS = (
    """The 12 rivers rise at 1,024 metres and don't meet before 2048; they're 36 km apart.
In 1999 and 2001 the water rose 8.62 metres, in 2010 it rose 12.5 metres. We'll see, he said.
    def rise(metres: float) -> list[int]:
        return [int(metre) for metre in range(2048)]  # 1999
L'eau est montée de 8,62 mètres; où est la gare? Здесь река, там вода. 这里有河，那里有水。
The water, the river, the metres: THE WATER, THE RIVER. I'VE seen 100 or 1000 of them.  Two spaces.
""".splitlines()
    * 3
)
TEXTS = [
    "The rivers don't rise 12345 metres, they're 1999.5 km away; WE'LL see I'VE 20482048 of them",
    "two  spaces,   three 12,  1  22   333\n\n\n4 and a trailing one ",
    "  leading\ttab\r\n\r\nnewline\n  \n    def rise(x: int) -> None:\n\treturn x  # 2048",
    "montée cafe\u0301 où\u0300 ﬁne ½ ² Ⅷ ٣٤ ＡＢＣ nbsp\u00a0here 电影 12电影34 Здесь вода",
    "emoji 🎬🍿 👩‍👧 🚉🚉 \u200b zero\u2028line '\u2019s 's'S'rE",
    "a/b_c $1,000.00 (really) -- U.S.A. ...??!! <b>&amp;</b> | ^~` {x}[y] @#%*+=\\",
    "",
    " ",
    "   ",
    "\n",
    "▁already▁escaped ▁ ▁▁",
    "<0x41> <s> literal",
]


def random_texts(count=150, seed=0):
    """Words of the corpus among characters of any kind."""
    rng = random.Random(seed)
    words = " ".join(CORPUS).split()
    ranges = [(0x20, 0x7E)] * 8 + [(0xA0, 0x24F), (0x300, 0x30F), (0x400, 0x4FF), (0x4E00, 0x4FFF)]
    ranges += [(0x1F300, 0x1F6FF), (0x9, 0xD), (0x2000, 0x206F), (0x660, 0x669), (0x30, 0x39)]

    def part():
        if rng.random() < 0.5:
            return rng.choice(words) + rng.choice(["", " ", "  ", "\n"])
        return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, 6)))

    return ["".join(part() for _ in range(rng.randint(0, 12))) for _ in range(count)]


# ---- bytes --------------------------------------------------------------------------------------


def _words(digits):
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def _bytes(use_regex):
    options = {"add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}
    return {"type": "ByteLevel", **options}


def _sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _split(pattern):
    kept = {"behavior": "Isolated", "invert": False}
    return {"type": "Split", "pattern": {"Regex": pattern}, **kept}


# How the tokenizer.json of SmolLM2, Llama 3, Qwen 2 and GPT-2 begin.
PUBLISHED = {
    "smollm": {
        "pre_tokenizer": _sequence({"type": "Digits", "individual_digits": True}, _bytes(True))
    },
    "llama-bpe": {"pre_tokenizer": _sequence(_split(_words("{1,3}")), _bytes(False))},
    "qwen2": {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": _sequence(_split(_words("")), _bytes(False)),
    },
    "gpt-2": {"pre_tokenizer": _bytes(True)},
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USERS = ["<think>", "  \t"]


@functools.cache
def byte_vocabulary():
    """Tokens in the order of their ids, and merges; special ones first. Digits are merged too."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=520, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokens = sorted(backend.get_vocab(), key=backend.get_vocab().get)
    merges = json.loads(backend.to_str())["model"]["merges"]
    return [*tokens, *USERS], [tuple(pair) for pair in merges]


def published(pre, bos=None):
    """The published form of a tokenizer, as tokenizer.json holds it."""
    tokens, merges = byte_vocabulary()
    added = [(token, True) for token in SPECIAL] + [(token, False) for token in USERS]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    template = None
    if bos is not None:
        ids = {bos: {"id": bos, "ids": [tokens.index(bos)], "tokens": [bos]}}
        start, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A"}}
        text["Sequence"]["type_id"] = 0
        template = {"type": "TemplateProcessing", "single": [start, text], "special_tokens": ids}
        template["pair"] = [start, text, {"Sequence": {"id": "B", "type_id": 1}}]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": tokens.index(token), "content": token, "special": special, **flags}
            for token, special in added
        ],
        "normalizer": None,
        "post_processor": template,
        "decoder": _bytes(True),
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [list(pair) for pair in merges],
            "ignore_merges": pre == "llama-bpe",
            **{"byte_fallback": False, "fuse_unk": False, "unk_token": None, "dropout": None},
            **{"continuing_subword_prefix": None, "end_of_word_suffix": None},
        },
        **PUBLISHED[pre],
    }
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def write_bytes(path, pre, arch="llama", **metadata):
    """The GGUF file of it, without weights."""
    tokens, merges = byte_vocabulary()
    kinds = {**dict.fromkeys(SPECIAL, CONTROL), **dict.fromkeys(USERS, USER)}
    own = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [kinds.get(token, NORMAL) for token in tokens],
        "merges": [" ".join(pair) for pair in merges],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    own = {f"tokenizer.ggml.{key}": value for key, value in {**own, **metadata}.items()}
    return write_gguf(path, arch, own)


# ---- SentencePiece ------------------------------------------------------------------------------


@functools.cache
def sentencepiece_model():
    """A processor with pairs of characters and bytes, with Llama 2's settings."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=520,
        character_coverage=0.98,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def write_sentencepiece(path, **metadata):
    """What llama.cpp's conversion makes of a tokenizer.model, without weights."""
    model = sentencepiece_model()
    ids = range(model.get_piece_size())
    types = [
        UNKNOWN
        if model.is_unknown(i)
        else CONTROL
        if model.is_control(i)
        else BYTE
        if model.is_byte(i)
        else NORMAL
        for i in ids
    ]
    own = {
        "model": "llama",
        "pre": "default",
        "tokens": [model.id_to_piece(i) for i in ids],
        "scores": [float(model.get_score(i)) for i in ids],
        "token_type": types,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    own = {f"tokenizer.ggml.{key}": value for key, value in {**own, **metadata}.items()}
    return write_gguf(path, "llama", own)


def write_json(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def gpt2_folder(folder, **files):
    """What openai-community/gpt2 had before it had a tokenizer.json."""
    tokens, merges = byte_vocabulary()
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    write_json(folder, vocab=vocabulary, **files)
    return folder
