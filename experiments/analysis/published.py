"""Read and check `published.csv`, the papers' own numbers.

Each line is one printed cell. If `runnable` is yes, `row` is the key of the config that runs it.
`value` is as printed, with percentages as percentages. `seeds` is a number or "unknown".
"""

import csv
import dataclasses
from pathlib import Path

from configs.common_texts import COMMONSENSE

PATH = Path(__file__).with_name("published.csv")
PERCENT = (
    "accuracy",
    "accuracy_mismatched",
    "f1",
    "matthews",
    "pearson",
    "spearman",
    "pearson_spearman",
    "accuracy_f1",
    "accuracy_m_mm",
    "mean",
    "pass_at_1",
    "accuracy_written",
    *(f"accuracy_written_{name}" for name in COMMONSENSE),
    "accuracy_written_mean",
)
"""Metrics that tables print in percent; `mean` is the mean over the tasks of an average."""
POINTS = ("bleu_lowercase_test", "rouge_l_test", "rouge_l", "exact_match", "score")
"""Text scores, which tables print as they are: from 0 to 100, or from 1 to 10 for a judge's."""
MODEL_TITLES = {
    "minilm": "MiniLM (all-MiniLM-L6-v2)",
    "roberta_base": "RoBERTa base",
    "roberta_large": "RoBERTa large",
    "deberta_v2_xxl": "DeBERTa-v2 XXL",
    "deberta_v3_base": "DeBERTa-v3 base",
    "t5_base": "T5 base",
    "gpt2_medium": "GPT-2 medium",
    "gpt2_large": "GPT-2 large",
    "gpt3_175b": "GPT-3 175B",
    "gpt_3_5_turbo": "ChatGPT (gpt-3.5-turbo)",
    "llama_7b": "LLaMA-7B",
    "llama_13b": "LLaMA-13B",
    "llama_33b": "LLaMA-33B",
    "llama_65b": "LLaMA-65B",
    "llama_7b_to_65b": "LLaMA-7B to 65B",
    "llama_2_7b": "LLaMA 2 7B",
    "llama_3_8b": "LLaMA 3 8B",
    "mistral_7b": "Mistral-7B",
    "gemma_7b": "Gemma-7B",
    "qwen3_0_6b": "Qwen3-0.6B",
    "openchat_3_5": "OpenChat 3.5",
    "various": "several models",
    "smollm2": "SmolLM2-135M (instruct)",
}
"""The names of models in tables; other models are named by their keys."""
SIZES = {
    "minilm": 22.6e6,
    "smollm2": 134.5e6,
    "roberta_base": 124.6e6,
    "roberta_large": 355.4e6,
    "deberta_v2_xxl": 1566.9e6,
    "deberta_v3_base": 184.4e6,
    "gpt2_medium": 354.8e6,
    "gpt2_large": 774.0e6,
    "llama_7b": 6738.4e6,
    "llama_13b": 13015.9e6,
    "llama_2_7b": 6738.4e6,
    "llama_3_8b": 8030.3e6,
    "mistral_7b": 7241.7e6,
}
"""The parameters of the models of studies, counted as in a record: with the head."""


@dataclasses.dataclass(frozen=True)
class Published:
    """One printed cell."""

    paper: str
    table: str
    model: str
    row: str
    method: str
    runnable: bool
    trained_parameters: int | None
    task: str
    metric: str
    value: float
    sd: float | None
    seeds: int | None
    protocol: str
    source: str
    note: str

    @property
    def line(self) -> tuple[str, str, str, str]:
        """The row of the printed table that this cell belongs to."""
        return self.paper, self.table, self.model, self.row


def load(path: Path = PATH) -> tuple[Published, ...]:
    """Read all printed cells.

    Raises:
      ValueError: a number cannot be read, with its line.
    """
    cells = []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for values in reader:
            seeds, sd, trained = (values[name] for name in ("seeds", "sd", "trained_parameters"))
            try:
                known = {
                    "runnable": values["runnable"] == "yes",
                    "value": float(values["value"]),
                    "sd": float(sd) if sd else None,
                    "seeds": None if seeds == "unknown" else int(seeds),
                    "trained_parameters": int(trained) if trained else None,
                }
            except ValueError as error:
                raise ValueError(f"{path.name}, line {reader.line_num}: {error}") from None
            cells.append(Published(**{**values, **known}))  # type: ignore[arg-type]
    return tuple(cells)
