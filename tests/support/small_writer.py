"""Folders of tiny random decoders with their tokenizers, and of data for them, in every form."""

import json

import tokenizers
from flax import nnx
from small_decoder import random_decoder
from text_files import entries, write_e2e, write_sets
from tokenizers import decoders, models, pre_tokenizers, trainers

from lora_jax.data.sources import commonsense
from lora_jax.models.published.export import export_model

END = "<|endoftext|>"
WORDS = 320


def write_model(folder, name="llama"):
    """A decoder of `make_fixtures.decoders.CASES` that reads every text, in a folder."""
    room = {"n_positions": 512} if name == "gpt2" else {"max_position_embeddings": 512}
    special = dict.fromkeys(("bos_token_id", "eos_token_id"), 0)
    model = random_decoder(name, vocab_size=WORDS, **room, **special)
    export_model(nnx.state(model), model.config, folder)
    _tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"eos_token": END, "bos_token": END, "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _tokenizer():
    """Of bytes and of what is frequent in the templates of instructions."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([each["instruction"] for each in instructions()], trainer)
    return backend


def write_data(folder):
    """E2E's CSV files, the eight sets of commonsense questions, and instructions, in one folder."""
    folder.mkdir()
    meanings = [(f"name[Inn {i}], area[riverside]", [f"Inn {i} is there."]) for i in range(20)]
    write_e2e(folder, "csv", ["train", "validation", "test"], meanings)
    write_sets(folder, ["ARC-Easy", "openbookqa"], commonsense.SETS)
    joint = [each for name in commonsense.SETS for each in entries(name, "train", 20)]
    (folder / "commonsense_170k.json").write_text(json.dumps(joint))
    (folder / "alpaca_data.json").write_text(json.dumps(instructions()))
    return folder


def instructions():
    return [{"instruction": f"Name the number {i}.", "output": f"It is {i}."} for i in range(40)]
