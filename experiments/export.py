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
prints the `--max-lora-rank` that is needed. A method that is no plain LoRA (DoRA) needs
`--svd_rank=R`, which cuts its updates to that rank; the relative error of each weight is printed
and kept.

    python -m experiments.export --run=runs/qlora --as=gguf-lora --out=exported/gguf

--as=gguf-lora writes `adapter.gguf`, which llama.cpp loads beside the model (`--lora`), also with
`--svd_rank`. It needs the package `gguf`: pip install "lora-jax[decoders]".

The run's data and base model must be where they were. --out must be new or empty; it appears whole
at the end, or not at all. `export.json` in it says which run it comes from, and how much rounding,
quantising and an SVD have changed each weight.
"""

import json
from pathlib import Path

from absl import flags

from experiments import cli
from experiments.exports import formats
from experiments.runs.finished_run import open_run, read_record
from lora_jax.files.new_folder import new_folder

_RUN = flags.DEFINE_string("run", None, "The folder of a finished run of experiments.train.")
_AS = flags.DEFINE_string("as", None, f"The format: {', '.join(formats.names())}.")
_OUT = flags.DEFINE_string("out", None, "The folder to write, new or empty.")
_OPTIONS = (
    flags.DEFINE_string(
        "dtype", None, "merged: float32, bfloat16 or float16; by default the run's own."
    ),
    flags.DEFINE_string(
        "shard_size", None, "merged: the most bytes of a file of weights, by default 5GB."
    ),
    flags.DEFINE_string("for", None, "peft: who loads it: peft (the default), vllm or sglang."),
    flags.DEFINE_integer(
        "svd_rank",
        None,
        "peft for a server, gguf-lora: cut updates of a higher rank to this one by SVD.",
        lower_bound=1,
    ),
)


def export() -> None:
    given = {flag.name: flag.value for flag in _OPTIONS if flag.present}
    chosen = formats.make(str(_AS.value), given)
    folder, out = Path(str(_RUN.value)), Path(str(_OUT.value))
    record = read_record(folder)
    with new_folder(out) as temporary:
        run = open_run(folder, record)
        content = chosen.write(run, temporary)
        said = content.pop("said")
        origin = {
            "format": _AS.value,
            "run": str(folder),
            "experiment": record.experiment,
            "variant": run.config.variant.name,
            "base_model": run.config.model.name,
            "config_digest": record.config_digest,
            "weights_digest": record.weights_digest,
        }
        text = json.dumps(origin | content, indent=2) + "\n"
        (temporary / "export.json").write_text(text, encoding="utf-8")
    for line in said:
        print(line)
    print(f"{_AS.value}: {out}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["run", "as", "out"])
    cli.main(export)
