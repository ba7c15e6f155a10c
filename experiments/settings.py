"""Print every setting of a config: its key, its type, its default, and what it means.

    python -m experiments.settings
    python -m experiments.settings --documents=docs  # rewrites the table between its markers

A command takes each key as a flag, such as --config.train.epochs=3. The settings of a variant are
the fields of its class: --config.variant.rank=16. A setting without a default comes from the config
file.
"""

from absl import flags

from experiments import cli
from experiments.catalogue import settings_table
from lora_jax.files import marked_documents
from lora_jax.table import Table

_DOCUMENTS = flags.DEFINE_list("documents", [], marked_documents.HELP)


def settings() -> None:
    if _DOCUMENTS.value:
        marked_documents.update(_DOCUMENTS.value, settings_table.fill)
        return
    print(Table(settings_table.HEADS, settings_table.rows()).to_text())


if __name__ == "__main__":
    cli.main(settings)
