"""What a record says of the machine."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from lora_jax.records import environment


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["flags : fpu avx512_bf16", "vendor_id : AuthenticAMD"], True),
        (["flags : fpu avx512_bf16", "vendor_id : GenuineIntel"], False),
        (["flags : fpu amx_bf16 amx_tile", "vendor_id : GenuineIntel"], True),
        (["flags : fpu avx512_bf16_of_another_kind", "vendor_id : AuthenticAMD"], False),
        (["Features : fp asimd"], False),
        ([], True),
    ],
)
def test_only_processors_with_a_unit_multiply_bfloat16(lines, expected, monkeypatch):
    monkeypatch.setattr(environment, "processor", lambda *fields: lines)
    assert environment.multiplies_bfloat16() is expected


@pytest.mark.parametrize("tracked", [True, False])
def test_git_is_of_the_checkout_that_holds_the_library(tmp_path, tracked, monkeypatch):
    def git(*args):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    source = Path(environment.__file__).read_text()
    (tmp_path / "records.py").write_text(source)
    (tmp_path / "other.py").write_text("1")
    git("init", "-q")
    git("add", "records.py" if tracked else "other.py")
    git("commit", "-qm", "one")

    def seen():
        description = importlib.util.spec_from_file_location("copied", tmp_path / "records.py")
        copied = importlib.util.module_from_spec(description)
        monkeypatch.setitem(sys.modules, "copied", copied)
        description.loader.exec_module(copied)
        return copied.environment()["git"]

    commit = git("rev-parse", "HEAD")
    assert seen() == ({"commit": commit, "dirty": False} if tracked else None)
    if tracked:
        (tmp_path / "records.py").write_text(source + "\n")
        assert seen()["dirty"] is True
