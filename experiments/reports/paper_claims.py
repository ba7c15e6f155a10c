"""What papers claim, the printed numbers it rests on, and the comparisons here that bear on it.

The printed numbers themselves are in `experiments/analysis/published.csv`.
"""

import dataclasses
from typing import Literal

Kind = Literal["better", "as good", "within", "faster"]


@dataclasses.dataclass(frozen=True)
class Printed:
    """A paper's effect: the mean over tasks of a row's printed scores less those of another row."""

    model: str
    row: str
    over: str = ""
    """Empty where the cell of `row` is the effect itself."""
    tasks: tuple[str, ...] = ("average",)
    shown: str = "{:+.1f}"
    source: tuple[str, str] | None = None
    """The paper and table that print it, if these are not those of the claim."""


@dataclasses.dataclass(frozen=True)
class Compared:
    """A comparison here: a method of a study, and the method that it is compared with."""

    study: str
    """Its folder in `experiments/results`."""
    row: str
    over: str = "lora"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim of a paper."""

    paper: str
    table: str
    arxiv: str
    says: str
    kind: Kind
    """Of the difference, in points: above 0 (`better`), above -margin (`as good`), between -margin
    and margin (`within`), or not of scores at all (`faster`)."""
    printed: tuple[Printed, ...]
    compared: tuple[Compared, ...]
    margin: float = 1.0
    parameters: float | None = None
    """Those of the method divided by those of the other, if `published.csv` has neither number."""


SMALL = Compared("against_lora_smollm2", "dora")

CLAIMS = (
    Claim(
        "LoRA",
        "Table 6",
        "2106.09685",
        "a very small rank is as good as a large one",
        "as good",
        (Printed("gpt3_175b", "qv_r1", "qv_r64", ("wikisql", "mnli")),),
        (Compared("lora_settings", "rank_4"), Compared("lora_settings", "rank_4", "rank_64")),
        parameters=1 / 64,  # the ranks of the two rows, on the same weights
    ),
    Claim(
        "LoRA",
        "Table 16",
        "2106.09685",
        "with 100 examples it is better than full fine-tuning",
        "better",
        (Printed("gpt3_175b", "lora", "full", ("mnli_100",)),),
        (
            Compared("few_examples/32", "lora", "full"),
            Compared("few_examples/128", "lora", "full"),
        ),
    ),
    Claim(
        "LoRA",
        "Table 16",
        "2106.09685",
        "with 1,000 examples it is as good as full fine-tuning",
        "as good",
        (Printed("gpt3_175b", "lora", "full", ("mnli_1k",)),),
        (Compared("few_examples/512", "lora", "full"),),
    ),
    Claim(
        "BitFit",
        "abstract",
        "2106.10199",
        "with small to medium data it is as good as full fine-tuning",
        "as good",
        (Printed("roberta_base", "bitfit", "full", source=("LoRA", "Table 2")),),
        (
            Compared("few_examples/32", "bitfit", "full"),
            Compared("few_examples/512", "bitfit", "full"),
            Compared("against_lora", "bitfit", "full"),
        ),
    ),
    Claim(
        "AdaLoRA",
        "Table 1",
        "2303.10512",
        "ranks moved to where they matter are better than equal ranks",
        "better",
        (Printed("deberta_v3_base", "adalora_b576", "lora_r8", shown="{:+.2f}"),),
        (Compared("against_lora", "adalora"),),
    ),
    Claim(
        "VeRA",
        "Table 2",
        "2310.11454",
        "with many times fewer parameters it is as good as LoRA",
        "as good",
        (
            Printed("roberta_base", "vera", "lora"),
            Printed("roberta_large", "vera", "lora_dagger"),
        ),
        (Compared("against_lora", "vera"),),
    ),
    Claim(
        "rsLoRA",
        "author's blog",
        "2312.03732",
        "at a large rank, alpha / sqrt(r) is better than alpha / r",
        "better",
        (Printed("openchat_3_5", "rslora_r256", "lora_r256", ("mt_bench",), "{:+.3f} of 10"),),
        (Compared("lora_scale/64", "rslora"), Compared("lora_scale/16", "rslora")),
        parameters=1,  # the same matrices
    ),
    Claim(
        "DoRA",
        "Table 1",
        "2402.09353",
        "it is better than LoRA",
        "better",
        tuple(
            Printed(model, "dora", "lora")
            for model in ("llama_7b", "llama_13b", "llama_2_7b", "llama_3_8b")
        ),
        (Compared("against_lora", "dora"), SMALL),
        parameters=0.84 / 0.83,  # the percentages of the rows of LLaMA-7B
    ),
    Claim(
        "LoRA+",
        "Figure 5",
        "2402.12354",
        "a higher rate for B gives a better score",
        "better",
        (Printed("llama_7b", "best_ratio", tasks=("mmlu",)),),
        (Compared("against_lora", "lora_plus"),),
        parameters=1,  # the same matrices
    ),
    Claim(
        "LoRA+",
        "Figure 7",
        "2402.12354",
        "a higher rate for B takes fewer steps",
        "faster",
        (Printed("roberta_base", "ratio_16", tasks=("mnli",), shown="up to {:g} times"),),
        (Compared("against_lora", "lora_plus"),),
        parameters=1,
    ),
    Claim(
        "PiSSA",
        "Table 3",
        "2404.02948",
        "a start along the largest singular values gives a better score",
        "better",
        (Printed("deberta_v3_base", "pissa", "lora", shown="{:+.2f}"),),
        (Compared("against_lora", "pissa"),),
    ),
    Claim(
        "PiSSA",
        "abstract",
        "2404.02948",
        "it converges faster than LoRA",
        "faster",
        (),
        (Compared("against_lora", "pissa"),),
        parameters=1,
    ),
    Claim(
        "MiLoRA",
        "abstract",
        "2406.09044",
        "a start along the smallest singular values gives a better score",
        "better",
        (),
        (Compared("against_lora", "milora"),),
        parameters=1,
    ),
    Claim(
        "LoRA-GA",
        "abstract",
        "2407.05000",
        "a start along the gradient gives a better score",
        "better",
        (
            Printed("t5_base", "lora_ga", tasks=("glue",)),
            Printed("llama_2_7b", "lora_ga", tasks=("gsm8k",)),
        ),
        (Compared("against_lora", "lora_ga"),),
        parameters=1,
    ),
    Claim(
        "LoRA-GA",
        "abstract",
        "2407.05000",
        "it converges faster than LoRA",
        "faster",
        (Printed("various", "lora_ga", tasks=("training",), shown="up to {:g} times"),),
        (Compared("against_lora", "lora_ga"),),
        parameters=1,
    ),
    Claim(
        "Learning Rate Matters",
        "Figure C2",
        "2602.04998",
        "with tuned rates, variants are within 1 to 2 points",
        "within",
        (Printed("qwen3_0_6b", "best_less_worst", tasks=("math",), shown="{:.2f} at most"),),
        (
            *(Compared("against_lora", row) for row in ("dora", "pissa", "milora", "lora_ga")),
            SMALL,
        ),
        margin=2.0,
    ),
)
"""In the order of their arXiv numbers."""
