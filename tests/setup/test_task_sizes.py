"""Files with too few examples: the error names the setting that asks for more, and the way out."""

import json
import re

import pytest

from configs.settings import DataSettings, TextSettings
from experiments.setup import from_config


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            {"validation": 4, "train": 17},
            "config.data.train 17: task 'own': cannot draw 17 of 16 examples of 'own/train'; "
            "0 takes all",
        ),
        (
            {"validation": 30},
            "config.data.validation 30: data set 'own/train': cannot hold out 30 of 20 examples",
        ),
        (
            {"validation": 18},
            "config.data.validation 18: data set 'own/train': class 'pos' has 8 examples without "
            "a duplicate, but 9 are to be drawn",
        ),
    ],
)
def test_of_own_texts(tmp_path, sizes, said):
    rows = [f"film {i},neg\nfilm {i + 10 if i < 8 else 'same'},pos\n" for i in range(10)]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(rows))
    files = {"train": "a.csv", "text": "text", "label": "label"}
    section = DataSettings(name="own", source="files", folder=str(tmp_path), files=files, **sizes)
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        from_config.make_task(section)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            {"validation": 2, "train": 400},
            "config.data.train 400: task 'mine': cannot draw 400 of 18 different examples of "
            "'mine/train'; 0 takes all",
        ),
        (
            {"validation": 21},
            "config.data.validation 21: task 'mine': cannot draw 21 of 20 different examples of "
            "'mine/train'",
        ),
    ],
)
def test_of_own_instructions(tmp_path, sizes, said):
    entries = [{"instruction": f"Say {i}.", "output": str(i)} for i in range(20)]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    files = {"train": "a.json"}
    section = TextSettings(name="mine", source="alpaca", folder=str(tmp_path), files=files, **sizes)
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        from_config.make_text_task(section)
