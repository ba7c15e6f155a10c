"""What a model card says of an imported or combined adapter: its run has not trained it."""

import shlex
from pathlib import Path
from typing import Any

from experiments.combining import combined_run
from experiments.command_names import shown
from experiments.exports.place import on_card
from experiments.imports import imported_run
from experiments.runs.finished_run import FinishedRun
from lora_jax.files.json_text import read_object
from lora_jax.records import seal


def is_made(run: FinishedRun) -> bool:
    """Whether the adapter is an imported or combined one, which the run has not trained."""
    return run.record.steps == 0


def command(folder: Path, config: str) -> str | None:
    """The command that has made the adapter; None if the run's folder does not say how.

    Args:
      folder: the run's.
      config: the file of the run's config, as the command is to name it.

    Raises:
      ValueError: the file on the adapter's origin is damaged.
    """
    out = on_card(str(folder.absolute()))
    for name, line in ((imported_run.FILE, _imported), (combined_run.FILE, _combined)):
        if (path := folder / name).is_file():
            content = read_object(path)
            try:
                said, found = seal.opened(content)
                seal.require_unchanged(said, found)  # of an earlier version, it has none
                module, given = line(said, config)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            except (KeyError, TypeError) as error:
                raise ValueError(f"{path} is damaged: it lacks {error}") from error
            flags = [
                f"--{flag}={value}" for flag, value in given.items() if value not in (None, "")
            ]
            return f"{shown(module)} {shlex.join([*flags, f'--out={out}'])}"
    return None


def _imported(said: dict[str, Any], config: str) -> tuple[str, dict[str, Any]]:
    source, commit, enabled = on_card(said["source"]), said["commit"], said.get("enable_lora")
    of_file = not (commit or "adapter_config.json" in said["sha256"])
    return "import_adapter", {
        "from": f"{source.partition('@')[0]}@{commit}" if commit else source,
        "alpha": said["adapter_config"].get("lora_alpha") if of_file else None,
        "enable_lora": ",".join(str(each).lower() for each in enabled or ()),
        "config": config,
    }


def _combined(said: dict[str, Any], config: str) -> tuple[str, dict[str, Any]]:
    return "combine", {
        "runs": ",".join(on_card(each["run"]) for each in said["runs"]),
        "weights": ",".join(str(each["weight"]) for each in said["runs"]),
        "by": said["by"],
        "rank": said["rank"],
        "density": said["density"],
        "seed": said["seed"],
        "keep": ",".join(said["kept"]),
    }
