"""Print what methods there are: their size and cost, what each can do, and who else has it.

    python -m experiments.methods
    python -m experiments.methods --shape=4096x11008 --format=csv
    python -m experiments.methods --model=minilm --variant=my_package.my_variant
    python -m experiments.methods --documents=README.md,docs  # rewrites their tables of methods

Every file in `variants/` has a row; `--variant` adds methods of your own, whose modules are on
PYTHONPATH. Parameters are those of one matrix of --shape (inputs x outputs), or with --model of a
whole model. Nothing is trained or compiled: facts come from the code and its docstrings, and the
cost of a step from `experiments/results/bench/methods.json`, where it was measured.
"""

from absl import flags

from experiments import cli
from experiments.catalogue import catalogue, methods_tables
from experiments.catalogue.catalogue import SHAPE, shape_of
from lora_jax.files import marked_documents

_SHAPE = flags.DEFINE_string(
    "shape", None, f"The matrix to adapt, INPUTSxOUTPUTS. The default is {SHAPE}."
)
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "Count the parameters of this model: minilm, a folder, or a name on the Hub. By default, those "
    "of one matrix are counted.",
)
_VARIANT = flags.DEFINE_list("variant", [], "Further methods, such as my_package.my_variant.")
_FORMAT = flags.DEFINE_enum("format", "text", methods_tables.FORMATS, "The format of the tables.")
_DOCUMENTS = flags.DEFINE_list("documents", [], marked_documents.HELP)


def methods() -> None:
    others = [flag for flag in (_SHAPE, _MODEL, _VARIANT) if flag.value]
    if _DOCUMENTS.value:
        if others:
            raise ValueError(
                "--documents: the tables in documents use the default; leave "
                f"--{others[0].name} out"
            )
        cli.refuse_ignored((_FORMAT,), "the tables in documents are in Markdown")
        shipped = catalogue.of_matrix(shape_of(SHAPE))
        marked_documents.update(_DOCUMENTS.value, lambda text: methods_tables.fill(text, shipped))
        return
    own = list(_VARIANT.value)
    if _MODEL.value is None:
        shape = SHAPE if _SHAPE.value is None else _SHAPE.value
        found = catalogue.of_matrix(shape_of(shape), own)
    else:
        if _SHAPE.value:
            raise ValueError("--shape and --model: give one of them")
        found = catalogue.of_model(_MODEL.value, own)
    print(methods_tables.write(_FORMAT.value, found), end="")


if __name__ == "__main__":
    cli.main(methods)
