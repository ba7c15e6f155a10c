"""Download a PEFT adapter from the Hugging Face Hub: its config and its safetensors, no pickle."""

from pathlib import Path

from experiments.runs.head_file import HEAD_FILE
from lora_jax.interchange.peft_folder import CONFIG, TORCH_WEIGHTS, WEIGHTS


def download(name: str, revision: str | None = None) -> Path:
    """The folder of a repository's adapter in the Hub's cache; its name is that of the commit.

    Args:
      name: `user/name`.
      revision: a branch, a tag or a commit; the default branch by default.

    Raises:
      FileNotFoundError: one line on why it is not to be had.
    """
    import huggingface_hub  # slow to import, and folders do not need it
    from huggingface_hub import errors

    given = f"--from={name}" + (f"@{revision}" if revision else "")
    try:
        where = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=[CONFIG, WEIGHTS, HEAD_FILE]
        )
        folder = Path(str(where))
        if (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
            return folder
        files = huggingface_hub.HfApi().list_repo_files(name, revision=revision)
    except errors.GatedRepoError:
        why = "its owner has to grant access: ask for it on the Hub, and log in (hf auth login)"
    except errors.RepositoryNotFoundError:
        why = (
            "neither a folder nor a repository of the Hub (log in if it is private: hf auth login)"
        )
    except errors.RevisionNotFoundError:
        why = f"the repository has no revision '{revision}'"
    except errors.LocalEntryNotFoundError:
        why = "no such folder, and the Hub cannot be reached, whose cache does not have it"
    except Exception as error:  # of the Hub, its HTTP client or the disk
        said = (str(error).strip().splitlines() or ["no reason given"])[0]
        why = f"no such folder, and not to be had from the Hub ({type(error).__name__}: {said})"
    else:
        if TORCH_WEIGHTS not in files:
            return folder  # the missing file is named where it is read
        why = (
            f"it has {TORCH_WEIGHTS} alone, a pickle, which is not downloaded: convert it by "
            f"loading it with PEFT and save_pretrained, which writes {WEIGHTS}"
        )
    raise FileNotFoundError(f"{given}: {why}")
