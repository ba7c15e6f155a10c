"""Push an exported folder to a new repository of the Hugging Face Hub."""

import re
import shlex
from pathlib import Path

from lora_jax.models.published.location import HUB_NAME


def require_new(name: str) -> None:
    """Check the name of a push and the user's access, before anything is computed.

    Args:
      name: `user/name` or `organisation/name`.

    Raises:
      ValueError: one line: no such name, no access, or the repository is there already.
    """
    given = f"--push={name}"
    if not re.fullmatch(HUB_NAME, name):
        raise ValueError(f"{given}: expected user/name, a name for the Hugging Face Hub")
    import huggingface_hub  # slow to import, and no other export needs it

    api = huggingface_hub.HfApi()
    try:
        huggingface_hub.utils.validate_repo_id(name)
        user, there = api.whoami(), api.repo_exists(name)
    except Exception as error:  # from the Hub or its HTTP client: nothing can be pushed
        raise ValueError(f"{given}: cannot use the Hugging Face Hub: {_line(error)}") from error
    owners = [user["name"], *(each["name"] for each in user.get("orgs", ()))]
    if name.partition("/")[0] not in owners:
        raise ValueError(f"{given}: this token belongs to {user['name']}, who may use {owners}")
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(f"{given}: this token may only read: make one that writes")
    if there:
        raise ValueError(
            f"{given}: there is such a repository already: name a new one, or export without "
            f"--push and give `hf upload {name} FOLDER`, which replaces files of the same names"
        )


def push(name: str, public: bool, folder: Path) -> list[str]:
    """Create the repository, upload a folder as one commit, and return lines for the user.

    Raises:
      OSError: one line; the folder is as it was, and the line says how to push it again.
    """
    import huggingface_hub

    api, made = huggingface_hub.HfApi(), "is not there"
    try:
        api.create_repo(name, private=not public)
        made = "was made and is there now, without these files"
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export from lora-jax")
    except Exception as error:  # from the Hub, its HTTP client or the disk
        private = () if public else ("--private",)
        again = shlex.join(("hf", "upload", name, str(folder), *private))
        raise OSError(
            f"--push={name}: {folder} is complete, but was not uploaded ({_line(error)}); "
            f"the repository {made}; to push it again: {again}"
        ) from error
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"  {path.relative_to(folder)}, {path.stat().st_size:,} bytes" for path in files]
    seen = "public" if public else "private"
    return [f"pushed, {seen}: {api.endpoint}/{name}", *lines]


def _line(error: BaseException) -> str:
    """An error and what has caused it, on one line."""
    said = " ".join(str(error).split()) or "no reason given"
    cause = f"; {_line(error.__cause__)}" if error.__cause__ else ""
    return f"{type(error).__name__}: {said}{cause}"
