r"""Make a run of an adapter that others have trained, with Hugging Face PEFT or microsoft/LoRA.

    python -m experiments.import_adapter --from=user/adapter --out=runs/theirs \
        --config=configs/glue.py:task=cola,source=tsv,folder=glue_data --config.model.name=...

--from is a folder with adapter_config.json and adapter_model.safetensors (or .bin), or `user/name`
on the Hugging Face Hub, `user/name@revision` for a branch, a tag or a commit; or a checkpoint of
microsoft/LoRA (loralib), a .pt, .pth, .bin or .safetensors file, for which `--alpha` says the
lora_alpha that its layers had and `--enable_lora`, such as true,false,true, which parts of GPT-2's
`c_attn` were adapted. The config says which base model and which task the run is of; its variant,
targets and also_train come from the adapter.

--out is a new folder, like that of a run that trained the adapter: it has the adapter, a config
that makes it, and a record with its scores on the task. So it can be exported, combined, compared,
and trained on; the last line says how to start from it. `imported.json` says where it comes from.

Nothing in the files is trusted: names, shapes and sizes are compared with the base model before
tensors are read, and nothing in a pickle is executed. A file does not show which weights it was
trained on: if it names another base model than the config, a warning says so.
"""

from absl import flags
from ml_collections import config_flags

from experiments import cli
from experiments.imports import adapter_source, imported_run
from experiments.runs import adapter_as_run
from experiments.setup.config import parse
from experiments.setup.devices import announce
from experiments.setup.load import load
from experiments.setup.out_of_memory import explained, of_evaluation, of_loading
from experiments.setup.own_model import require_published
from lora_jax.files.atomic import new_folder

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The base model and the task of the run.", lock_config=True
)
_FROM = flags.DEFINE_string(
    "from",
    None,
    "The adapter: a folder of PEFT, user/name[@revision] on the Hub, or a file of loralib.",
)
_ALPHA = flags.DEFINE_float(
    "alpha", None, "The lora_alpha of the layers of a file of loralib, which needs it."
)
_ENABLE_LORA = flags.DEFINE_list(
    "enable_lora",
    None,
    "Whether each part of a MergedLinear is adapted in a file of loralib, as in true,false,true.",
)
_OUT = flags.DEFINE_string("out", None, "The folder to write, which must not exist.")
OF_THE_ADAPTER = ("variant", "targets", "also_train", "start_from")
"""The sections of a config that come from the adapter."""


def import_adapter() -> None:
    out = cli.run_folder(str(_OUT.value))
    if out.exists():
        raise ValueError(f"--out={out} exists; name a new folder")
    for name in config_flags.get_override_values(flags.FLAGS["config"]):
        if name.partition(".")[0] in OF_THE_ADAPTER:
            raise ValueError(f"--config.{name} comes from the adapter: leave it out")
    plain = _CONFIG.value.to_dict()
    config, source = parse(plain), adapter_source.find(str(_FROM.value))
    require_published(config, "import_adapter")
    for flag in (_ALPHA, _ENABLE_LORA):
        if flag.present and not source.is_file:
            raise ValueError(f"--{flag.name} is for a file of loralib, and --from={source.given} "
                             "is of PEFT")  # fmt: skip
    enabled = _enabled(_ENABLE_LORA.value)
    announce()
    with explained(of_loading(config.model)):
        model = load(config)
    with explained(of_evaluation(config)):
        found = adapter_source.read_adapter(source, config, model, _ALPHA.value, enabled)
        print(imported_run.table(found))
        print(imported_run.base_model(config, found))
        for line in imported_run.doubts(config, found):
            cli.warn(line)
        drawn = imported_run.drawn(model, found)
        cli.warn(imported_run.new_head(source.given, config, drawn))
        config = imported_run.config_of(plain, found)
        experiment = imported_run.experiment_of(config, model, found)
        made_of = {
            "source": source.given,
            "commit": source.commit,
            "sha256": source.digests(),
            "base_model_name_or_path": found.config.get("base_model_name_or_path"),
            "base_model": config.model.name,
            "weights_digest": model.weights_digest,
            "adapter_config": found.config,
            "enable_lora": enabled,
        }
        with new_folder(out) as folder:
            note = f"imported from {source.given}"
            note += f", with {', '.join(drawn)} drawn anew" if drawn else ""
            record = adapter_as_run.write(folder, experiment, imported_run.FILE, made_of, note)
    adapter_as_run.say(record, out)


def _enabled(words: list[str] | None) -> list[bool] | None:
    if words is None:
        return None
    if not {*words} <= {"true", "false"}:
        raise ValueError(f"--enable_lora={','.join(words)}: expected such as true,false,true")
    return [word == "true" for word in words]


if __name__ == "__main__":
    flags.mark_flags_as_required(["from", "config", "out"])
    cli.main(import_adapter)
