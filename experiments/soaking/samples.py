"""Small valid files of each kind that a user may give, and what reads them."""

import dataclasses
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import nnx

import lora_jax as lj
import variants
from experiments.setup import from_config, json_config
from experiments.setup.config import parse
from experiments.setup.read_config import read_config
from experiments.soaking import tiny_gguf
from experiments.soaking.inputs import SIZES
from lora_jax import data
from lora_jax.files.gguf_file import GgufFile
from lora_jax.interchange.peft_folder import CONFIG, TORCH_WEIGHTS, WEIGHTS
from lora_jax.models import families
from lora_jax.models.published.export import export_model
from lora_jax.models.published.gguf import gguf_config
from lora_jax.models.published.load import load_classifier
from lora_jax.models.published.torch_bin import TorchFile

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "##s")
ROWS = tuple(
    (f"{word} film {number}", label)
    for number in range(3)
    for word, label in (("good", "positive"), ("bad", "negative"))
)
MARK = "executed"
"""What an input makes in its folder if it is executed."""
STEPS = 4
PARAMS = {
    "up/kernel": jnp.ones((6, 4), jnp.float32),
    "down/kernel": jnp.ones((4, 3), jnp.float32),
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of input."""

    name: str
    make: Callable[[Path], None]
    """Writes valid files into an empty folder."""
    files: tuple[str, ...]
    """Those that are spoiled, one at a time."""
    read: Callable[[Path], Any]
    """Reads the folder as the commands do."""


def forward(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["up/kernel"]) @ params["down/kernel"]


X = jnp.ones((2, 6), jnp.float32)
NAMES = lj.names_from_patterns({"up/kernel": "up", "down/kernel": "down"})


def kinds() -> list[Kind]:
    """All kinds of input whose files are spoiled."""
    reader = lj.PeftReader(variants.from_peft, NAMES, forward, PARAMS, X)
    return [
        Kind("config.json of a run", _make_config, ("config.json",), _read_config),
        *(
            Kind(f"data as {suffix}", _rows(suffix), (f"train.{suffix}",), _read_rows(suffix))
            for suffix in ("tsv", "csv", "jsonl")
        ),
        Kind(
            "tokenizer",
            _make_tokenizer,
            ("tokenizer.json", "tokenizer_config.json"),
            _read_tokenizer,
        ),
        Kind(
            "vocab.txt", _make_vocabulary, ("vocab.txt", "tokenizer_config.json"), _read_tokenizer
        ),
        Kind("encoder", _make_encoder, ("config.json", "model.safetensors"), _read_encoder),
        Kind("GGUF", _make_gguf, ("model.gguf",), _read_gguf),
        Kind("PEFT folder", _make_peft, (CONFIG, WEIGHTS), reader),
        Kind("pickle", _make_pickle, (TORCH_WEIGHTS,), _read_pickle),
    ]


def read_flags(texts: list[str]) -> None:
    """Read a command line of a config, and make what it names."""
    config = parse(read_config(["--config=configs/quickstart.py:size=smoke", *texts]).to_dict())
    from_config.make_run_targets(config, STEPS)
    from_config.make_storage(config.quantize)


def read_pattern(text: str) -> None:
    """Adapt a small function where a pattern of targets says."""
    adapted = lj.adapt(forward, variants.make("lora", rank=2), [text])
    jax.eval_shape(adapted.init, jax.random.key(0), PARAMS, X)


def _make_config(folder: Path) -> None:
    config = read_config(["--config=configs/quickstart.py:size=smoke"]).to_dict()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _read_config(folder: Path) -> Any:
    config = parse(json_config.read(str(folder / "config.json")).to_dict())
    from_config.make_storage(config.quantize)
    return from_config.make_run_targets(config, STEPS)


def _rows(suffix: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        between = {"tsv": "\t", "csv": ","}.get(suffix)
        if between is None:
            lines = [json.dumps({"text": text, "label": label}) for text, label in ROWS]
        else:
            lines = [between.join(each) for each in (("text", "label"), *ROWS)]
        (folder / f"train.{suffix}").write_text("\n".join(lines) + "\n", encoding="utf-8")

    return make


def _read_rows(suffix: str) -> Callable[[Path], Any]:
    files = {"train": f"train.{suffix}", "text": "text", "label": "label"}

    def read(folder: Path) -> Any:
        return data.load_task("own", "files", str(folder), files=files, validation=2).digest()

    return read


def _make_tokenizer(folder: Path) -> None:
    model = tokenizers.models.WordPiece(
        {word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"
    )
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.save(str(folder / "tokenizer.json"))
    _make_settings(folder)


def _make_vocabulary(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    _make_settings(folder)


def _make_settings(folder: Path) -> None:
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _read_tokenizer(folder: Path) -> Any:
    examples = data.Examples("own", ["good films", "bad"], None, None, ["0", "1"])
    return data.encode(data.load_tokenizer(folder), examples, 8).ids


def _make_encoder(folder: Path) -> None:
    config = families.family_of(SIZES).config.from_json({**SIZES, "vocab_size": len(WORDS)})
    classifier: Any = families.find("bert").model
    model = classifier(config, 2, "cls", rngs=nnx.Rngs(0))
    export_model(nnx.state(model), config, folder)


def _read_encoder(folder: Path) -> Any:
    return load_classifier(folder, num_labels=2, pool="cls", key=jax.random.key(0)).fresh


def _make_gguf(folder: Path) -> None:
    tiny_gguf.write(
        folder / "model.gguf",
        context=16,
        inner=6,
        tokens=("<end>", "g", "o", "d", "go", "od"),
        merges=("g o", "o d"),
        tensors={
            "token_embd.weight": np.ones((6, 4), np.float32),
            "blk.0.attn_q.weight": np.ones((4, 4), np.float32),
        },
    )


def _read_gguf(folder: Path) -> Any:
    file = GgufFile(folder / "model.gguf")
    config = gguf_config(file)
    for name in file.names():
        file.check_type(name)
        file.read(name)
    tokens = data.load_tokenizer(folder / "model.gguf").backend.encode("good").ids
    return config, tokens


def _make_peft(folder: Path) -> None:
    adapted = lj.adapt(forward, variants.make("lora", rank=2), ["up/kernel", "down/kernel"])
    lj.save_peft(folder, *adapted.init(jax.random.key(0), PARAMS, X), NAMES)


def _make_pickle(folder: Path) -> None:
    """A file of torch.save's form, whose pickle asks for a function that writes a file."""
    stream = io.BytesIO()
    pickle.Pickler(stream, protocol=2).dump({"w": _Runs(str(folder / MARK))})
    with zipfile.ZipFile(folder / TORCH_WEIGHTS, "w") as archive:
        archive.writestr("any/data.pkl", stream.getvalue())
        archive.writestr("any/byteorder", "little")


class _Runs:
    """Unpickled by Python itself, it makes a folder."""

    def __init__(self, path: str):
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self._path,)


def _read_pickle(folder: Path) -> Any:
    file = TorchFile(folder / TORCH_WEIGHTS)
    return {name: file.read(name) for name in file.names()}
