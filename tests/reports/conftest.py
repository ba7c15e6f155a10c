"""Records of LoRA's Table 2, which several of the tests of tables read."""

import numpy as np
import pytest
from fake_records import GLUE, write


@pytest.fixture
def base(tmp_path):
    """LoRA's Table 2 on RoBERTa base, five seeds of every task; the scores by task."""
    rng = np.random.default_rng(0)
    scores = {}
    for task in GLUE:
        scores[task] = rng.uniform(0.6, 0.9, 5)
        metric = {"cola": "matthews", "stsb": "pearson"}.get(task, "accuracy")
        for seed, score in enumerate(scores[task]):
            start = ",start_from=runs/mnli" if task in ("mrpc", "rte", "stsb") else ""
            arg = f"model=roberta_base,task={task},seed={seed}{start}"
            folder = tmp_path / "results" / task / str(seed)
            write(folder, "lora_table2", arg, {metric: score, "eval_loss": 0.5}, parameters=294_912)
    return tmp_path / "results", scores
