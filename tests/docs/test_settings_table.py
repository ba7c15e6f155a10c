"""The table of settings has every key of a config, and documents have the table."""

import dataclasses

from configs import common, own_data, settings
from configs.settings import fields_of
from experiments.catalogue import settings_table
from lora_jax.files import marked_documents


def test_every_key_has_a_row_with_a_meaning():
    rows = settings_table.rows()
    keys = {row.key for row in rows}
    for config in settings_table.KINDS.values():
        assert keys >= fields_of(config).keys() - {"plain", "variant.settings"}
    assert [row.key for row in rows if not row.meaning] == []
    flat = own_data.get_config().to_dict()
    assert keys >= {f"train.{name}" for name in flat["train"]}


def test_a_row_says_what_the_setting_is():
    rows = {row.key: row for row in settings_table.rows() if row.of != "decoders"}
    assert rows["train.epochs"][:4] == ("train.epochs", "float", "`3`", "")
    assert rows["model.head_dropout"][:4] == (
        "model.head_dropout",
        "float or none",
        "none",
        "encoders",
    )
    assert rows["optimizer.learning_rate"].default == ""
    assert rows["train.accumulate"].meaning == (
        "How many parts a batch is computed in, to save memory."
    )
    default = {field.name: field.default for field in dataclasses.fields(settings.TrainSettings)}
    assert rows["train.batch_size"].default == f"`{default['batch_size']}`"
    assert common.train().batch_size == default["batch_size"]


def test_documents_have_the_table():
    texts = [path.read_text(encoding="utf-8") for path in marked_documents.files()]
    assert sum(text.count("<!-- settings -->") for text in texts) == 1
    assert [text for text in texts if settings_table.fill(text) != text] == []
