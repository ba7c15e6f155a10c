"""Push an exported folder to a new repository of the Hugging Face Hub."""

import dataclasses
import re
import shlex
from pathlib import Path

from lora_jax.models.published.location import HUB_NAME


@dataclasses.dataclass(frozen=True)
class Target:
    """A repository that does not exist yet, and that the user may create."""

    name: str
    public: bool


def checked(name: str, public: bool) -> Target:
    """The target of a push, checked before anything is computed.

    Args:
      name: `user/name` or `organisation/name`.
      public: whether everyone will see it.

    Raises:
      ValueError: one line: no such name, no access, or the repository is there already.
    """
    given = f"--push={name}"
    if not re.fullmatch(HUB_NAME, name):
        raise ValueError(f"{given}: expected user/name, a name for the Hugging Face Hub")
    import huggingface_hub  # slow to import, and no other export needs it

    api = huggingface_hub.HfApi()
    try:
        user, there = api.whoami(), api.repo_exists(name)
    except Exception as error:  # from the Hub or its HTTP client: nothing can be pushed
        raise ValueError(
            f"{given}: no access to the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN "
            f"({_line(error)})"
        ) from error
    owners = [user["name"], *(each["name"] for each in user.get("orgs", ()))]
    token = user.get("auth", {}).get("accessToken", {})
    for wrong, said in (
        (name.partition("/")[0] not in owners, f"this token may use {owners}"),
        (token.get("role") == "read", "this token may only read: make one that writes"),
        (there, "there is such a repository already: name a new one"),
    ):
        if wrong:
            raise ValueError(f"{given}: {said}")
    return Target(name, public)


def push(target: Target, folder: Path) -> str:
    """Create the repository, upload a folder as one commit, and return a line for the user.

    Raises:
      OSError: one line; the folder is as it was, and the line says how to push it again.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        api.create_repo(target.name, private=not target.public)
        api.upload_folder(
            repo_id=target.name, folder_path=folder, commit_message="Export from lora-jax"
        )
    except Exception as error:  # from the Hub, its HTTP client or the disk
        again = ["hf", "upload", target.name, str(folder)] + ["--private"] * (not target.public)
        raise OSError(
            f"--push={target.name}: {folder} is complete, but was not uploaded ({_line(error)}); "
            f"to push it again: {shlex.join(again)}"
        ) from error
    return f"pushed, {'public' if target.public else 'private'}: {api.endpoint}/{target.name}"


def _line(error: BaseException) -> str:
    """An error and what has caused it, on one line."""
    said = " ".join(str(error).split()) or "no reason given"
    cause = f"; {_line(error.__cause__)}" if error.__cause__ else ""
    return f"{type(error).__name__}: {said}{cause}"
