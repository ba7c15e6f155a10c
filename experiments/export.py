r"""Export a finished run in a format that others load.

    python -m experiments.export --run=runs/lora --as=merged --out=exported/lora

--as=merged writes a complete model, the adapter merged into its weights, which transformers loads:

    AutoModelForSequenceClassification.from_pretrained("exported/lora")      # AutoModelForCausalLM

`--dtype` chooses its precision, and `--shard_size` how much a file of weights holds. Of an encoder
that averages its tokens (`pool="mean"`), transformers' AutoModel loads the encoder, and the command
says how the head is applied. A base that was quantised (QLoRA) is written as the run computed with
it, and dense.

    python -m experiments.export --run=runs/lora --as=peft --out=exported/peft
    python -m experiments.export --run=runs/qlora --as=peft --for=vllm --out=exported/vllm

--as=peft writes the adapter alone, which PEFT loads onto the published base; the command says how.
Of an encoder that averages its tokens, the adapter is for AutoModel, and `head.safetensors` has
the head. `--for=vllm` or `--for=sglang` writes plain LoRA for a server of language models: every
scale in B, one rank, `lora_alpha` equal to it, and only modules that the server adapts. The command
prints the `--max-lora-rank` that is needed. A method that is not a plain LoRA (DoRA) needs
`--svd_rank=R`, which cuts its updates to that rank; the relative error of each weight is printed
and kept.

    python -m experiments.export --run=runs/qlora --as=gguf-lora --out=exported/gguf

--as=gguf-lora writes `adapter.gguf`, which llama.cpp loads beside the model (`--lora`), also with
`--svd_rank`. It needs the package `gguf`: pip install "lora-jax[decoders]".

--as=loralib writes the adapter and what else was trained as a checkpoint of microsoft/LoRA, without
pickles, for models whose layers are loralib's. The command says which layers, r and lora_alpha they
need, and how they load it; `export.json` names the layer of each module.

The run's data and base model must be where they were. --out must be new or empty; it appears whole
at the end, or not at all. In it, `export.json` says which run it comes from, and how much rounding,
quantising and an SVD have changed each weight. `README.md` is a model card with the run's scores
and their intervals, and `run.json` has every setting of the run, paths on this machine too.

    python -m experiments.export --run=runs/lora --as=merged --out=exported/lora --push=user/lora

also makes a repository of that name on the Hugging Face Hub, private without --public, and uploads
the folder. The name and the access are checked first. Without --push, nothing goes to the Hub.
`export.json` has names without their folders. A base model that is a folder of this machine is
named in `adapter_config.json`, where AutoPeftModel looks for it, but not with --push, nor is a
GGUF file. `run.json` has the run's settings as they are.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from experiments import cli
from experiments.command_names import shown
from experiments.exports import formats, hub
from experiments.exports.base_and_head import Place, on_card, published
from experiments.exports.model_card import CONFIG, Export, model_card
from experiments.runs.finished_run import open_run, read_record
from experiments.setup.config import parse
from experiments.setup.devices import announce
from experiments.setup.own_model import require_published
from lora_jax.files.atomic import new_folder

_RUN = flags.DEFINE_string("run", None, "The folder of a finished run of experiments.train.")
_AS = flags.DEFINE_string("as", None, f"The format: {', '.join(formats.FORMATS)}.")
_OUT = flags.DEFINE_string("out", None, "The folder to write, new or empty.")
_PUSH = flags.DEFINE_string(
    "push",
    None,
    "Also upload the folder to a new repository of this name, user/name, on the Hugging Face Hub.",
)
_PUBLIC = flags.DEFINE_bool("public", False, "With --push: let everyone see the repository.")
_OPTIONS = (
    flags.DEFINE_string(
        "dtype",
        None,
        "With --as=merged: float32, bfloat16 or float16. The default is the run's own.",
    ),
    flags.DEFINE_string(
        "shard_size",
        None,
        "With --as=merged: the most bytes that a file of weights holds. The default is 5GB.",
    ),
    flags.DEFINE_string(
        "for", None, "With --as=peft: who loads it, which is peft (the default), vllm or sglang."
    ),
    flags.DEFINE_integer(
        "svd_rank",
        None,
        "With --as=peft for a server, and with --as=gguf-lora: cut updates of a higher rank to "
        "this one by SVD. By default, none are cut.",
        lower_bound=1,
    ),
)


def export() -> None:
    given = {flag.name: flag.value for flag in _OPTIONS if flag.present}
    chosen = formats.make(str(_AS.value), given)
    folder, out = Path(str(_RUN.value)), cli.out_folder(str(_OUT.value))
    record = read_record(folder)
    if _AS.value != "merged":
        require_published(parse(record.config), f"--as={_AS.value}")
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"--out={out} is inside the folder of --run: name one elsewhere")
    if _PUBLIC.value and not _PUSH.value:
        raise ValueError("--public is for --push, which is not given")
    if _PUSH.value is not None:
        hub.require_new(_PUSH.value)
    with new_folder(out) as temporary:
        announce()
        run = open_run(folder, record)
        content = chosen.write(run, temporary, here=_PUSH.value is None)
        said = content.pop("said")
        origin = {
            "format": _AS.value,
            "run": folder.resolve().name,
            "experiment": record.experiment,
            "variant": run.config.variant.name,
            "base_model": published(run) or on_card(run.config.model.name),
            "config_digest": record.config_digest,
            "weights_digest": record.weights_digest,
        }
        place = Place(_PUSH.value or out.resolve().name, here=False)
        used = chosen.use(run, place, content)
        card = Export(chosen, place, _command(given), used, said)
        for name, text in (
            ("export.json", json.dumps(origin | content, indent=2) + "\n"),
            (CONFIG, json.dumps(record.config, indent=2) + "\n"),
            ("README.md", model_card(run, card)),
        ):
            (temporary / name).write_text(text, encoding="utf-8")
        used = chosen.use(run, Place(str(out), here=True), content)
    for line in said:
        print(line)
    print("to load it:", *used.code.splitlines(), sep="\n    ")
    print(f"{_AS.value}: {out}")
    if _PUSH.value:
        print("\n".join(hub.push(_PUSH.value, bool(_PUBLIC.value), out)))


def _command(given: Mapping[str, Any]) -> str:
    """The command without --push, for the card."""
    run, out = on_card(str(_RUN.value)), on_card(str(_OUT.value))
    values = {"run": run, "as": _AS.value, "out": out, **given}
    line = [f"--{name}={value}" for name, value in values.items()]
    return f"{shown('export')} {shlex.join(line)}"


if __name__ == "__main__":
    flags.mark_flags_as_required(["run", "as", "out"])
    cli.main(export)
