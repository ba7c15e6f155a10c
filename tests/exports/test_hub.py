"""Folders go to a Hub: whole, into a new repository, and only where the user may write."""

import hub_uploads
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from experiments.exports import hub

# huggingface_hub's own call of its HTTP client, where Xet is off.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def there(monkeypatch, tmp_path):
    """A Hub on this machine, whose token the user has."""
    with hub_uploads.serving() as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", hub_uploads.TOKEN)
        yield made
        close_session()


@pytest.fixture
def folder(tmp_path):
    """An export with a large file, and one in a folder of its own."""
    made = tmp_path / "out"
    (made / "chat").mkdir(parents=True)
    (made / "README.md").write_text("---\ntags:\n- lora-jax\n---\n\nA card: ü\n", encoding="utf-8")
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    (made / "chat/template.jinja").write_text("{{ x }}\r\n", encoding="utf-8", newline="")
    return made


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("name", "public", "seen"), [("ada/lora", False, "private"), ("engines/lora", True, "public")]
)
def test_a_folder_arrives_byte_for_byte(there, folder, name, public, seen):
    hub.require_new(name)
    assert there.visibility == {}
    lines = hub.push(name, public, folder)
    assert there.files == {name: content(folder)} and there.visibility == {name: seen}
    assert lines == [
        f"pushed, {seen}: {there.url}/{name}",
        "  README.md, 37 bytes",
        "  chat/template.jinja, 9 bytes",
        "  model.safetensors, 25,600 bytes",
    ]


def test_a_failed_upload_leaves_the_folder_and_says_how_to_go_on(there, folder):
    before, there.refused = content(folder), "/commit/"
    with pytest.raises(OSError, match="is complete, but was not uploaded") as error:
        hub.push("ada/lora", public=False, folder=folder)
    said = str(error.value)
    assert said.endswith(f"to push it again: hf upload ada/lora {folder} --private")
    assert "the storage is full" in said and "\n" not in said
    assert "; the repository was made and is there now, without these files; " in said
    assert content(folder) == before and there.files == {}
    there.refused = "/repos/create"
    with pytest.raises(OSError, match="; the repository is not there; to push it again: "):
        hub.push("ada/other", public=False, folder=folder)


def refused(name, said):
    with pytest.raises(ValueError, match=f"^--push={name}: {said}") as error:
        hub.require_new(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["lora", "ada/", "/lora", "ada/lora/2", "a b/c", "ada/--x", ""])
def test_a_name_that_cannot_be(there, name):
    refused(name, "")
    assert there.asked == []


def test_who_may_not_push(there, monkeypatch):
    refused("bob/lora", r"this token belongs to ada, who may use \['")
    there.visibility["ada/lora"] = "private"
    refused("ada/lora", "there is such a repository already")
    there.user["auth"] = {"accessToken": {"role": "read"}}
    refused("ada/new", "this token may only read")
    assert there.visibility == {"ada/lora": "private"}
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused("ada/lora", "cannot use the Hugging Face Hub: ")
    there.asked.clear()
    monkeypatch.delenv("HF_TOKEN")
    refused("ada/lora", ".*LocalTokenNotFoundError: .*`hf auth login`")
    assert there.asked == []
