"""GLUE's hyperparameters as the papers print them, row by row, against the configs."""

import importlib

import pytest

GLUE = "mnli sst2 mrpc cola qnli qqp rte stsb"
VERA = "sst2 mrpc cola qnli rte stsb"
# A paper's table: its config and arguments, its tasks, and a row each of what differs by task and
# of what does not.
PRINTED = {
    "LoRA, Table 9, RoBERTa base": (
        "lora_table2:model=roberta_base",
        GLUE,
        {
            "train.batch_size": "16 16 16 32 32 16 32 16",
            "train.epochs": "30 60 30 80 25 25 80 40",
            "optimizer.learning_rate": "5e-4 5e-4 4e-4 4e-4 4e-4 5e-4 5e-4 4e-4",
        },
        {
            "data.max_length": 512,
            "variant.rank": 8,
            "variant.alpha": 8,
            "optimizer.warmup_ratio": 0.06,
        },
    ),
    "LoRA, Table 9, RoBERTa large": (
        "lora_table2:model=roberta_large",
        GLUE,
        {
            "train.batch_size": "4 4 4 4 4 4 8 8",
            "train.epochs": "10 10 20 20 10 20 20 30",
            "optimizer.learning_rate": "3e-4 4e-4 3e-4 2e-4 2e-4 3e-4 4e-4 2e-4",
            "data.max_length": "128 128 512 128 512 512 512 512",
        },
        {"variant.rank": 8, "variant.alpha": 16, "optimizer.warmup_ratio": 0.06},
    ),
    "LoRA, Table 9, RoBERTa large in the set-up of Houlsby et al.": (
        "lora_table2:model=roberta_large,method=lora_dagger",
        GLUE,
        {
            "train.epochs": "10 10 20 20 10 20 20 10",
            "optimizer.learning_rate": "3e-4 4e-4 3e-4 2e-4 2e-4 3e-4 4e-4 2e-4",
        },
        {
            "train.batch_size": 4,
            "data.max_length": 128,
            "variant.rank": 8,
            "variant.alpha": 16,
            "optimizer.warmup_ratio": 0.06,
        },
    ),
    "LoRA, Table 10, DeBERTa-v2-XXL; rank and alpha as in the scripts": (
        "lora_table2:model=deberta_v2_xxl",
        GLUE,
        {
            "train.batch_size": "8 8 32 4 6 8 4 4",
            "train.epochs": "5 16 30 10 8 11 11 10",
            "optimizer.learning_rate": "1e-4 6e-5 2e-4 1e-4 1e-4 1e-4 2e-4 2e-4",
            "optimizer.weight_decay": "0 .01 .01 0 .01 .01 .01 .1",
            "model.head_dropout": ".15 0 0 .1 .1 .2 .2 .2",
            "data.max_length": "256 128 128 64 512 320 320 128",
        },
        {
            "variant.rank": 16,
            "variant.alpha": 32,
            "variant.initialization": "normal",
            "model.dropout": True,
            "optimizer.warmup_ratio": 0.1,
        },
    ),
    "AdaLoRA, Table 8 and scripts, DeBERTa-v3 base": (
        "adalora_table1:model=deberta_v3_base,method=adalora_b144",
        "mnli rte qnli mrpc qqp sst2 cola stsb",
        {
            "optimizer.learning_rate": "5e-4 1.2e-3 1.2e-3 1e-3 5e-4 8e-4 5e-4 2.2e-3",
            "train.epochs": "7 50 5 30 5 24 25 25",
            "variant.orthogonality": ".1 .3 .1 .1 .1 .1 .5 .1",
            "variant.t_init": "8000 600 2000 600 8000 6000 800 800",
            "variant.delta_t": "100 1 100 1 100 100 10 10",
            "variant.t_final": "50000 1800 8000 1800 25000 22000 3500 2000",
            "data.max_length": "256 320 512 320 320 128 64 128",
            "variant.alpha": "16 32 32 32 16 16 32 32",
            "model.head_dropout": ".15 .2 .1 0 .15 0 .1 .2",
            "optimizer.weight_decay": "0 .01 .01 .01 .01 .01 0 .1",
            "optimizer.warmup_steps": "1000 200 500 0 2000 1000 100 100",
        },
        {"train.batch_size": 32, "variant.rank": 4, "variant.target_rank": 2},
    ),
    "AdaLoRA, Table 7, a budget of 576": (
        "adalora_table1:model=deberta_v3_base,method=adalora_b576",
        "mnli",
        {},
        {"variant.rank": 12, "variant.target_rank": 8, "optimizer.warmup_ratio": 0.1},
    ),
    "PiSSA, Table 10, PiSSA; lengths of AdaLoRA's scripts": (
        "pissa_table3:model=deberta_v3_base,method=pissa",
        "mnli sst2 mrpc cola qnli qqp rte stsb",
        {
            "train.epochs": "5 20 20 20 10 10 50 20",
            "train.batch_size": "16 16 32 16 32 16 16 8",
            "optimizer.learning_rate": "5e-4 3e-5 2e-4 1e-4 1e-4 1e-4 1e-4 3e-4",
            "variant.alpha": "8 8 8 8 16 8 8 8",
            "data.max_length": "256 128 320 64 512 320 320 128",
        },
        {"variant.rank": 8, "optimizer.warmup_ratio": 0, "optimizer.weight_decay": 0},
    ),
    "PiSSA, Table 10, LoRA": (
        "pissa_table3:model=deberta_v3_base,method=lora",
        "mnli sst2 mrpc cola qnli qqp rte stsb",
        {
            "train.epochs": "10 10 10 30 25 10 50 30",
            "train.batch_size": "32 32 32 32 32 16 32 16",
            "optimizer.learning_rate": "3e-4 1e-4 4e-4 4e-4 3e-4 3e-4 4e-4 4e-4",
            "data.max_length": "256 128 320 64 512 320 320 128",
        },
        {"variant.rank": 8, "variant.alpha": 8},
    ),
    "VeRA, Table 8, RoBERTa base": (
        "vera_table2:model=roberta_base",
        VERA,
        {
            "train.epochs": "60 30 80 25 160 80",
            "optimizer.head_learning_rate": "4e-3 4e-3 1e-2 4e-3 1e-2 1e-2",
            "optimizer.learning_rate": "4e-3 1e-2 1e-2 1e-2 4e-3 1e-2",
        },
        {
            "train.batch_size": 64,
            "data.max_length": 512,
            "variant.rank": 1024,
            "variant.d_init": 0.1,
            "optimizer.warmup_ratio": 0.06,
        },
    ),
    "VeRA, Table 8, RoBERTa large on four devices": (
        "vera_table2:model=roberta_large",
        VERA,
        {
            "train.epochs": "10 40 40 20 40 20",
            "optimizer.head_learning_rate": "6e-3 3e-3 6e-3 2e-4 2e-3 2e-3",
            "optimizer.learning_rate": "1e-2 3e-2 1e-2 1e-2 2e-2 2e-2",
        },
        {
            "train.batch_size": 4 * 32,
            "data.max_length": 128,
            "variant.rank": 256,
            "variant.d_init": 0.1,
            "optimizer.warmup_ratio": 0.06,
        },
    ),
}


@pytest.mark.parametrize("printed", PRINTED.values(), ids=PRINTED)
def test_hyperparameters_are_those_that_the_paper_prints(printed):
    config, tasks, rows, same = printed
    name, _, argument = config.partition(":")
    get_config = importlib.import_module(f"configs.{name}").get_config
    for number, task in enumerate(tasks.split()):
        found = get_config(f"{argument},task={task}").to_dict()
        wanted = same | {key: float(row.split()[number]) for key, row in rows.items()}
        for key, value in wanted.items():
            section, setting = key.split(".")
            assert found[section][setting] == value, (task, key)


def test_configs_of_no_paper_warm_up_as_the_papers_do():
    """For 6% of all steps: RoBERTa, Table 10 (arXiv 1907.11692); LoRA, Table 9; VeRA, Table 8."""
    for name in ("quickstart", "instruct"):
        config = importlib.import_module(f"configs.{name}").get_config()
        assert config.optimizer.warmup_ratio == 0.06, name
