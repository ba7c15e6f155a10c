"""What is said of runs, formats and flags that cannot be exported."""

import pytest
from fake_records import write

from experiments.exports import formats
from experiments.runs.finished_run import read_record


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "mergd",
            {},
            "^--as=mergd: unknown format; nearest: 'merged'; the formats: gguf-lora, ",
        ),
        ("__init__", {}, "^--as=__init__: unknown format"),
        ("merged", {"rank": 3}, "^--rank is not a flag of --as=merged, .* are: --dtype, --shard_s"),
        ("loralib", {"dtype": "float32"}, "^--dtype is not a flag of --as=loralib, .* are: none$"),
        ("merged", {"dtype": "float8"}, "^--dtype=float8: unknown dtype; nearest: 'float"),
        ("merged", {"shard_size": "5"}, "^--shard_size=5: expected a size such as 5GB or 500MB$"),
        ("merged", {"shard_size": "0GB"}, "^--shard_size=0GB: expected a size"),
        ("merged", {"for": "vllm"}, "^--for is not a flag of --as=merged, "),
        ("peft", {"for": "vlm"}, "^--for=vlm: unknown loader; nearest: 'vllm'"),
        ("peft", {"loader": "vllm"}, "^--loader is not a flag .* are: --for, --svd_rank$"),
        ("peft", {"svd_rank": 3}, "^--svd_rank is for servers: --for=vllm or --for=sglang$"),
        ("gguf_lora", {}, "^--as=gguf_lora: unknown format; nearest: 'gguf-lora'"),
    ],
)
def test_a_format_or_an_option_that_there_is_not(name, options, said):
    with pytest.raises(ValueError, match=said):
        formats.make(name, options)


def test_runs_that_are_not_exported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^--run=.*gone: no such folder$"):
        read_record(tmp_path / "gone")
    (tmp_path / "lora").mkdir()
    with pytest.raises(FileNotFoundError, match=r"nothing: no such folder$"):
        read_record(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"lroa: no such folder; nearest in .*: 'lora'$"):
        read_record(tmp_path / "lroa")
    with pytest.raises(FileNotFoundError, match=r"; there is no folder .*; nearest in .*: 'lora'$"):
        read_record(tmp_path / "lroa" / "seed0")
    said = "^--run=.* is not the folder of a run: it has no config.json"
    with pytest.raises(ValueError, match=f"{said}$"):
        read_record(tmp_path)
    (tmp_path / "lora/config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^--run=.*lora has not ended: it has no record.json; th"):
        read_record(tmp_path / "lora")
    write(tmp_path / "lora", "quickstart", "", {"accuracy": None}, status="diverged")
    with pytest.raises(ValueError, match=r"^--run=.*lora is not completed, but diverged"):
        read_record(tmp_path / "lora")
    with pytest.raises(ValueError, match=f"{said}; the runs in it: lora$"):
        read_record(tmp_path)
