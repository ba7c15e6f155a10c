"""Push an exported folder to a new repository of the Hugging Face Hub."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

from lora_jax.models.published.location import HUB_NAME


@dataclasses.dataclass(frozen=True)
class Target:
    """A repository that does not exist yet, and that the user may create."""

    name: str
    public: bool

    def by_hand(self, folder: Path) -> str:
        """The command that pushes a folder there."""
        private = () if self.public else ("--private",)
        return shlex.join(("hf", "upload", self.name, str(folder), *private))


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
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{given}: {_line(error)}") from error
    if huggingface_hub.get_token() is None:
        raise ValueError(
            f"{given}: there is no token of the Hugging Face Hub: run `hf auth login`, or set "
            "HF_TOKEN"
        )
    api = huggingface_hub.HfApi()
    try:
        user, there = api.whoami(), api.repo_exists(name)
    except Exception as error:  # from the Hub or its HTTP client: nothing can be pushed
        raise ValueError(f"{given}: no access to the Hugging Face Hub ({_line(error)})") from error
    _require_access(given, name.partition("/")[0], user)
    if there:
        raise ValueError(
            f"{given}: there is such a repository already: name a new one, or export without "
            f"--push and give `hf upload {name} FOLDER`, which replaces files of the same names"
        )
    return Target(name, public)


def push(target: Target, folder: Path) -> list[str]:
    """Create the repository, upload a folder as one commit, and return lines for the user.

    Raises:
      OSError: one line; the folder is as it was, and the line says how to push it again.
    """
    import huggingface_hub

    api, made = huggingface_hub.HfApi(), "is not there"
    try:
        api.create_repo(target.name, private=not target.public)
        made = "was made and is there now, without these files"
        api.upload_folder(
            repo_id=target.name, folder_path=folder, commit_message="Export from lora-jax"
        )
    except Exception as error:  # from the Hub, its HTTP client or the disk
        raise OSError(
            f"--push={target.name}: {folder} is complete, but was not uploaded ({_line(error)}); "
            f"the repository {made}; to push it again: {target.by_hand(folder)}"
        ) from error
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"  {path.relative_to(folder)}, {path.stat().st_size:,} bytes" for path in files]
    seen = "public" if target.public else "private"
    return [f"pushed, {seen}: {api.endpoint}/{target.name}", *lines]


def _require_access(given: str, owner: str, user: dict[str, Any]) -> None:
    """Raise a ValueError if the user may not create repositories of this owner, by `whoami`."""
    owners = [user["name"], *(each["name"] for each in user.get("orgs", ()))]
    if owner not in owners:
        raise ValueError(f"{given}: this token belongs to {user['name']}, who may use {owners}")
    token = user.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise ValueError(f"{given}: this token may only read: make one that writes")


def _line(error: BaseException) -> str:
    """An error and what has caused it, on one line."""
    said = " ".join(str(error).split()) or "no reason given"
    cause = f"; {_line(error.__cause__)}" if error.__cause__ else ""
    return f"{type(error).__name__}: {said}{cause}"
