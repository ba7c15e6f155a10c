"""Writes tests/fixtures/{roberta,deberta}_tokenizer/ and the ids of transformers and SentencePiece.

Needs transformers and sentencepiece. The vocabularies are tiny ones, learnt from what this
repository's README once was; DeBERTa's table of characters has a handful of rules, a published one
240 kB.

    python tests/support/make_fixtures/tokenizer_files.py
"""

import json
from pathlib import Path
from types import SimpleNamespace

FIXTURES = Path(__file__).parents[2] / "fixtures"
SINGLES = [
    "a gorgeous , witty , seductive movie .",
    "Capital LETTERS and Straße, İstanbul, ÅNGSTRÖM",
    "two  spaces,   three, and a trailing one ",
    "  leading\ttab\nnewline",
    "the ﬁne ½ ﬂoor, ＡＢＣ, e\u0301 and é, nbsp\u00a0here",
    "电影很好看 emoji 🎬🍿 👩‍👧",
    "don't (really) -- U.S.A., $1,000.00; a/b_c",
    "<s> literal </s> special <mask> tokens <pad>",
    "[CLS] literal [SEP] special [MASK] tokens [PAD], <num>7<num>",
    "▁already escaped▁",
    "",
    " ",
    "adapter " * 40,
]
PAIRS = [
    ("the weights are frozen", "the factors are trained"),
    ("a short one", "and " * 60),
    ("", "only the second"),
    ("only the first", ""),
    ("Ünïcödé 电影", "🎬 [SEP] again </s>"),
]
ROBERTA_SETTINGS = [{}, {"add_prefix_space": True}]
DEBERTA_SETTINGS = [{}, {"do_lower_case": True}, {"split_by_punct": True}]
# what NFKC says of some characters, as SentencePiece takes its rules
RULES = {"ﬁ": "fi", "ﬂ": "fl", "½": "1⁄2", "Ａ": "A", "Ｂ": "B", "Ｃ": "C", "\u00a0": " "}
RULES |= {"\t": " ", "\n": " "}


def corpus():
    text = (FIXTURES / "tokenizer_corpus.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


def write_roberta(folder):
    from tokenizers import ByteLevelBPETokenizer

    folder.mkdir(exist_ok=True)
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(corpus(), vocab_size=420, special_tokens=special)
    trained.save_model(str(folder))


def write_deberta(folder):
    import io
    import tempfile

    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    def points(text):
        return " ".join(f"{ord(character):X}" for character in text)

    folder.mkdir(exist_ok=True)
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.write("".join(f"{points(a)}\t{points(b)}\n" for a, b in RULES.items()))
        rules.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus()),
            model_writer=model,
            vocab_size=220,
            model_type="unigram",
            normalization_rule_tsv=rules.name,
            user_defined_symbols=["<num>"],
            **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "minloglevel": 2},
            **{"pad_piece": "[PAD]", "bos_piece": "[CLS]"},
            **{"eos_piece": "[SEP]", "unk_piece": "[UNK]"},
        )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    proto.normalizer_spec.ClearField("normalization_rule_tsv")  # a path of the machine
    (folder / "spm.model").write_bytes(proto.SerializeToString(deterministic=True))


def roberta_reference(folder, settings):
    """transformers' tokenizer."""
    from transformers import RobertaTokenizer

    return RobertaTokenizer.from_pretrained(folder, **settings).backend_tokenizer


def deberta_reference(folder, settings):
    """What transformers' converter makes of the file, with the special tokens."""
    import sentencepiece
    from transformers.convert_slow_tokenizer import DebertaV2Converter

    path = str(folder / "spm.model")
    model = sentencepiece.SentencePieceProcessor(model_file=path)
    options = {"do_lower_case": False, "split_by_punct": False, **settings}
    slow = SimpleNamespace(
        vocab_file=path, convert_tokens_to_ids=model.piece_to_id, add_prefix_space=True, **options
    )
    backend = DebertaV2Converter(slow).converted()
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return backend


def encode(reference, texts):
    """[ids, type ids] of each."""
    found = [reference.encode(*([text] if isinstance(text, str) else text)) for text in texts]
    return [[each.ids, each.type_ids] for each in found]


def main():
    import transformers

    kinds = {
        "roberta": (write_roberta, roberta_reference, ROBERTA_SETTINGS),
        "deberta": (write_deberta, deberta_reference, DEBERTA_SETTINGS),
    }
    fixture = {
        "made_by": f"make_fixtures/tokenizer_files.py, transformers {transformers.__version__}",
        "singles": SINGLES,
        "pairs": PAIRS,
    }
    for kind, (write, reference, all_settings) in kinds.items():
        folder = FIXTURES / f"{kind}_tokenizer"
        write(folder)
        fixture[kind] = []
        for settings in all_settings:
            made = reference(folder, settings)
            encoded = {"singles": encode(made, SINGLES), "pairs": encode(made, PAIRS)}
            fixture[kind].append({"settings": settings, **encoded})
    text = json.dumps(fixture, separators=(",", ":"))
    (FIXTURES / "tokens_files.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
