"""A table has a block for each model, and rows for what has not been run yet."""

import pytest
from fake_records import write
from rendered_tables import markdown, notes

from experiments.analysis import published
from experiments.analysis.labels import natural, told_apart
from experiments.reports.tables import config_tables


def test_a_published_number_is_never_beside_another_model_s(base):
    results, _ = base
    for seed in range(2):
        write(
            results / "small" / str(seed),
            "lora_table2",
            f"task=rte,seed={seed}",
            {"accuracy": 0.6 + seed / 50},
            parameters=73_728,
        )
    made = markdown("lora_table2", results)
    small = made.pop("MiniLM (all-MiniLM-L6-v2) (ours)")
    assert small["LoRA"]["RTE"] == "61.0 ± 1.4 (2)"
    assert small["LoRA"]["MNLI"] == "not run"
    assert not any("/" in text for row in small.values() for text in row.values())
    by_title = {"roberta_base": "RoBERTa base", "roberta_large": "RoBERTa large"}
    by_title |= {"deberta_v2_xxl": "DeBERTa-v2 XXL"}
    for cell in published.load():
        if cell.line[:2] == ("LoRA", "Table 2") and cell.task == "rte":
            rows = made[f"{by_title[cell.model]} (ours / published)"]
            name = cell.method if cell.runnable else f"{cell.method} (published only)"
            assert f"/ {cell.value:.1f}" in rows[name]["RTE"]
    assert "minilm, lora, rte: 2 of our runs did not start from" in notes("lora_table2", results)


@pytest.mark.parametrize(("name", "published_rows"), [("lora_table6", 15), ("lora_table18", 11)])
def test_a_decoder_s_table_is_a_block_of_its_own(tmp_path, name, published_rows):
    for seed in range(3):
        arg = f"model=roberta_base,task=mnli,rank=4,seed={seed}"
        write(tmp_path / str(seed), name, arg, {"accuracy": 0.87}, parameters=147_456)
    made = markdown(name, tmp_path)
    (paper,) = (block for title, block in made.items() if title.endswith("(published only)"))
    assert len(made) == 2 and len(paper) == published_rows
    ours = made["RoBERTa base (ours)"]
    run = [list(row.values()) for row in ours.values() if row["MNLI"] != "not run"]
    assert run == [["147,456", "87.0 ± 0.0 (3)"]]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (
            "lora_table6",
            [
                f"LoRA, {weights}, r={rank}"
                for weights in ("Wq", "Wq,Wv", "Wq,Wk,Wv,Wo")
                for rank in (1, 2, 4, 8, 64)
            ],
        ),
        ("lora_table18", [f"LoRA, r={2**power}" for power in range(9)]),
    ],
)
def test_a_grid_stands_there_before_anything_of_it_is_run(tmp_path, name, rows):
    grid = markdown(name, tmp_path)["RoBERTa base (ours)"]
    assert list(grid) == rows
    assert all(list(row.items())[1:] == [("CoLA", "not run")] for row in grid.values())
    arg = "model=roberta_base,task=rte,rank=4"
    write(tmp_path / "one", name, arg, {"accuracy": 0.7}, parameters=147_456)
    grid = markdown(name, tmp_path)["RoBERTa base (ours)"]
    assert list(grid) == rows
    cells = [list(row.items())[1:] for row in grid.values()]
    assert cells.count([("RTE", "not run")]) == len(rows) - 1
    assert cells.count([("RTE", "70.0 (1)")]) == 1


def test_a_table_of_fixed_columns_and_rows_says_what_of_it_is_not_run(tmp_path):
    write(
        tmp_path,
        "studies.against_lora",
        "task=cola,row=lora",
        {"matthews": 0.4},
        parameters=331_776,
    )
    (made,) = markdown("against_lora", tmp_path).values()
    assert len(made) == 16 and list(made)[:3] == ["head alone", "BitFit", "full fine-tuning"]
    ours = made.pop("LoRA")
    assert (ours["CoLA"], ours["SST-2"]) == ("40.0 (1)", "not run")
    assert all(row["CoLA"] == row["SST-2"] == "not run" for row in made.values())


def test_another_model_in_the_place_of_the_config_s_is_a_block_of_its_own(base):
    results, _ = base
    before = markdown("lora_table2", results)
    own = {"changes": {"model.name": "google-bert/bert-base-uncased"}, "parameters": 294_912}
    arg = "model=roberta_base,task=cola,seed=7"
    write(
        results / "bert",
        "lora_table2",
        arg,
        {"matthews": 0.6},
        parameters_total=109_483_778,
        **own,
    )
    made = markdown("lora_table2", results)
    other = made.pop("roberta_base replaced by a model of 109M parameters (ours)")
    assert other["LoRA"]["CoLA"] == "60.0 (1)"
    assert made == before
    said = "of 109M parameters: our runs are of google-bert/bert-base-uncased."
    assert said in notes("lora_table2", results)


def test_smoke_runs_stand_beside_published_numbers_with_a_warning(tmp_path):
    arg = "model=roberta_base,task=cola,size=smoke"
    write(tmp_path / "a", "lora_table2", arg, {"matthews": 0.1}, parameters=294_912)
    text = config_tables.render_table("lora_table2", tmp_path, "markdown", size="smoke")
    assert "**LoRA, Table 2: GLUE, smoke runs, RoBERTa base (ours / published)**" in text
    assert "10.0 (1) / 63.4" in text and "never compare them with published numbers" in text
    assert "our runs are of tiny-roberta on generated data." in text.replace("\\", "")
    write(tmp_path / "b", "lora_table2", "model=minilm,task=cola,size=smoke", {"matthews": 0.2})
    alone = config_tables.render_table("lora_table2", tmp_path, "markdown", "minilm", "smoke")
    assert "20.0 (1)" in alone and "leave out --model to see what is." in alone


def test_names_are_in_order_of_their_numbers():
    assert natural(["r16", "r2", "qv_r8", "r1", "qv_r64"]) == [
        "qv_r8",
        "qv_r64",
        "r1",
        "r2",
        "r16",
    ]
    rates = ["rate_2e-4_ratio_4", "rate_1e-5_ratio_16", "rate_1e-5_ratio_4"]
    assert natural(rates) == [rates[2], rates[1], rates[0]]


def test_names_that_several_keys_share_are_told_apart():
    names = {"lora": "LoRA", "one.mine": "Mine", "two.mine": "Mine"}
    told = {"lora": "LoRA", "one.mine": "Mine (one.mine)", "two.mine": "Mine (two.mine)"}
    assert told_apart(names) == told


def test_every_table_renders_before_anything_is_run(tmp_path):
    for name in config_tables.names():
        assert config_tables.render_table(name, tmp_path, "markdown")
    assert (
        config_tables.render_table("glue", tmp_path, "markdown").strip() == "Nothing has been run."
    )
    write(tmp_path / "run", "quickstart", "", {"accuracy": 0.5})
    said = config_tables.render_table("glue", tmp_path, "rich")
    assert "The folder has 1 run of quickstart: leave out --table" in " ".join(said.split())
    with pytest.raises(ValueError, match="--table=quickstart: it has no table of its own"):
        config_tables.render_table("quickstart", tmp_path, "rich")
    assert {"lora_table2", "vera_table2", "glue"} <= set(config_tables.names())
    assert "quickstart" not in config_tables.names()
