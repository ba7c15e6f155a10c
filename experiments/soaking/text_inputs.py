"""A tiny language model, as a folder with a chat template or as a GGUF file, and tiny questions."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from flax import nnx

from experiments.soaking import tiny_gguf
from lora_jax.models import families
from lora_jax.models.published.export import export_model

END = "<end>"
BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
TOKENS = (END, *BYTES, "11")
MERGE = ("1", "1")
TEMPLATE = (
    "{% for message in messages %}{{ message.role[0] }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}a: {% endif %}"
)
SIZES = {
    "model_type": "llama",
    "vocab_size": len(TOKENS),
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
SETTINGS = {
    "targets": ("query/kernel",),
    "data.max_length": 48,
    "data.buckets": 1,
    "data.scored": 0,
    "variant.rank": 2,
    "optimizer.learning_rate": 1e-2,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.checkpoint_every": 2,
    "train.evaluate_first": False,
    "generate.samples": 0,
    "generate.max_new_tokens": 4,
}
"""Four steps of 8 questions: each is logged, and every second one is saved."""


@dataclasses.dataclass(frozen=True)
class TextInputs:
    """A folder with a model and two files of questions, `train.jsonl` and `validation.jsonl`."""

    folder: Path
    model_name: str
    """`model`, a folder, or `model.gguf`."""

    @property
    def model(self) -> Path:
        return self.folder / self.model_name

    @property
    def train(self) -> Path:
        return self.folder / "train.jsonl"

    @property
    def validation(self) -> Path:
        return self.folder / "validation.jsonl"

    @property
    def config(self) -> list[str]:
        """The flags of a run of four steps."""
        files = {"data.files.train": self.train, "data.files.validation": self.validation}
        settings = {"model.name": self.model, **files, **SETTINGS}
        return [
            "--config=configs/instruct.py:source=alpaca,task=own,train=0",
            *(f"--config.{name}={value}" for name, value in settings.items()),
        ]


def make(made: TextInputs) -> None:
    """Write the inputs into their folder, which is not there; the same bytes each time."""
    made.folder.mkdir(parents=True)
    drawn = random.Random(0)
    for path, rows in ((made.train, 32), (made.validation, 8)):
        path.write_text("".join(_question(drawn) for _ in range(rows)), encoding="utf-8")
    (_write_gguf if made.model.suffix == ".gguf" else _write_folder)(made.model)


def _question(drawn: random.Random) -> str:
    one, other = drawn.randrange(100), drawn.randrange(100)
    return json.dumps({"instruction": f"{one} + {other}", "output": str(one + other)}) + "\n"


def _write_folder(folder: Path) -> None:
    config = families.read(SIZES)
    build: Any = families.find("llama").model
    export_model(nnx.state(build(config, rngs=nnx.Rngs(0))), config, folder)
    words = {token: number for number, token in enumerate(TOKENS)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(words, [MERGE]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([END])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def _write_gguf(path: Path) -> None:
    hidden, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
    square, gate = (hidden, hidden), (inner, hidden)
    block = {f"attn_{name}": square for name in ("q", "k", "v", "output")}
    block |= {"ffn_gate": gate, "ffn_up": gate, "ffn_down": gate[::-1]}
    block |= {"attn_norm": (hidden,), "ffn_norm": (hidden,)}
    shapes = {"token_embd": (len(TOKENS), hidden), "output_norm": (hidden,)}
    shapes |= {f"blk.0.{name}": shape for name, shape in block.items()}
    drawn = np.random.default_rng(0)
    tiny_gguf.write(
        path,
        context=SIZES["max_position_embeddings"],
        inner=inner,
        tokens=TOKENS,
        merges=[" ".join(MERGE)],
        tensors={
            f"{name}.weight": drawn.standard_normal(shape).astype(np.float32)
            for name, shape in shapes.items()
        },
        template=TEMPLATE,
    )
