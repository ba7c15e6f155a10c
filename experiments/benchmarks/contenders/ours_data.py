"""What a run does with its examples before it trains: reading, tokenising, and the batch plan."""

import tempfile
from pathlib import Path

import numpy as np

from experiments.benchmarks.cases import Case
from experiments.benchmarks.contenders.made import Made
from lora_jax import data
from lora_jax.models.published.location import locate

WORDS = "a an the film of is not with and for that very this story about which plot was dull great"
LENGTH = 20
"""Words of a text on average, about as many as of a pair in MNLI."""
HELD_OUT = 100


def make(case: Case) -> Made:
    home = tempfile.TemporaryDirectory()
    path = Path(home.name) / "examples.tsv"
    write(path, case.examples + HELD_OUT)
    tokenizer, files = data.load_tokenizer(locate("minilm")), dict(zip(NAMES, COLUMNS, strict=True))

    def work() -> int:
        assert home.name  # the folder stays as long as the work
        given = {"train": str(path), **files}
        task = data.load_task("random", "files", files=given, validation=HELD_OUT)
        encoded = data.encode(tokenizer, task.train, 128)
        boundaries = data.bucket_boundaries(encoded.lengths, 6, limit=128)
        plan = data.plan_epoch(encoded.lengths, case.rows, boundaries, seed=0, epoch=0)
        return sum(len(batch.indices) for batch in plan)

    return Made(work, {"file_bytes": path.stat().st_size})


NAMES, COLUMNS = ("text", "label"), ("sentence", "class")


def write(path: Path, rows: int) -> None:
    """Write a file of random texts with one of two labels each."""
    rng, words = np.random.default_rng(0), np.array(WORDS.split())
    with path.open("w", encoding="utf-8") as file:
        print(*COLUMNS, sep="\t", file=file)
        for number in range(rows):
            text = " ".join(rng.choice(words, rng.integers(LENGTH // 2, 3 * LENGTH // 2)))
            # Numbered: texts of a real data set differ.
            print(f"{number} {text}", "ab"[number % 2], sep="\t", file=file)
