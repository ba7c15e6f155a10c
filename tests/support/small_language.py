"""A language of a few words: a tiny decoder with its tokenizer in a folder, and questions in it."""

import json

import numpy as np
import tokenizers
from flax import nnx
from small_decoder import random_decoder
from tokenizers import decoders, models, pre_tokenizers, trainers

from lora_jax.models.published.export import export_model

COLOURS = ("red", "green", "blue", "yellow")
THINGS = ("sky", "grass", "blood", "sun", "sea", "leaf", "rose", "sand")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def questions(count, seed=0):
    """Entries as LLM-Adapters has them: `answerN` is the place of a thing's colour."""
    random = np.random.default_rng(seed)
    entries = []
    for number in range(count):
        thing = int(random.integers(len(THINGS)))
        colours = random.permutation(COLOURS)
        place = list(colours).index(COLOURS[thing % len(COLOURS)]) + 1
        listed = " ".join(f"Answer{i}: {colour}" for i, colour in enumerate(colours, 1))
        asked = f"What colour has the {THINGS[thing]} number {number}?"
        entries.append(
            {
                "instruction": f"Please choose the correct answer to the question: {asked}\n\n"
                f"{listed}\n\nAnswer format: answer1/answer2/answer3/answer4",
                "input": "",
                "output": f"the correct answer is answer{place}",
                "answer": f"answer{place}",
            }
        )
    return entries


def write_set(folder, name="openbookqa", train=48, test=12):
    """A set of LLM-Adapters in a folder of its own."""
    (folder / name).mkdir(parents=True)
    for part, count, seed in (("train", train, 1), ("test", test, 2)):
        content = json.dumps(questions(count, seed))
        (folder / name / f"{part}.json").write_text(content, encoding="utf-8")
    return folder


def write_model(folder, seed=0, tokens=256, **changes):
    """A decoder of random weights, and a byte-level tokenizer with a chat template."""
    texts = [each["instruction"] + each["output"] for each in questions(40)]
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<end>", "<user>", "<assistant>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    size = backend.get_vocab_size()
    model = random_decoder(
        "llama", seed, vocab_size=size, max_position_embeddings=tokens, eos_token_id=0, **changes
    )
    export_model(nnx.state(model), model.config, folder)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<end>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return model


def write_places(folder):
    """A model and a set beside each other."""
    write_model(folder / "model")
    write_set(folder / "sets")
    return folder
