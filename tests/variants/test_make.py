"""The ways of naming and setting a variant: `variants.make` and `variants.find`."""

import re
import sys

import numpy as np
import pytest

import variants
from lora_jax.methods.lowrank import LowRank
from variants.lora import LoRA


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rank": 0}, "rank must be an integer of at least 1, got 0"),
        ({"rank": 2.5}, "rank must be an integer of at least 1, got 2.5"),
        ({"alpha": float("inf")}, "alpha must be a finite number, got inf"),
        ({"alpha": 10**400}, "alpha must be a finite number, got one of too many digits"),
        ({"rank": 4, "max_rank": 3}, "max_rank 3 is below rank 4"),
        ({"dropout": 1.0}, "dropout must be in [0, 1), got 1.0"),
        ({"dropout": -0.1}, "dropout must be in [0, 1), got -0.1"),
        ({"scale": "alpha/rnk"}, "scale 'alpha/rnk' is unknown; nearest: 'alpha/rank'"),
        ({"initialization": "gausian"}, "initialization 'gausian' is unknown; nearest: 'gaussian'"),
        ({"learning_rate_ratio": -2}, "learning_rate_ratio must be finite and at least 0, got -2"),
        ({"initialization": "orthogonal", "rank": 5}, "'orthogonal' needs an even rank, got 5"),
        ({"rank": True}, "variant 'lora': rank must be a number, got True"),
        ({"max_rank": "9"}, "variant 'lora': max_rank must be a number, got '9'"),
        ({"dropout": "a"}, "variant 'lora': dropout must be a number, got 'a'"),
        ({"initialization": True}, "variant 'lora': initialization must be a text, got True"),
        ({"scale": 2.0}, "variant 'lora': scale must be a text, got 2.0"),
        ({"alhpa": 1.0}, "variant 'lora' has no setting 'alhpa'; nearest: 'alpha'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        variants.make("lora", **settings)
    assert "\n" not in str(error.value)


def test_a_class_refuses_what_is_no_number():
    with pytest.raises(ValueError, match="rank must be an integer of at least 1, got True"):
        LoRA(rank=True)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 'a'"):
        LoRA(dropout="a")  # type: ignore[arg-type]


def test_numbers_of_numpy_become_plain_settings():
    made = variants.make("lora", rank=np.int64(4), dropout=np.float32(0.5))
    assert made == LoRA(rank=4, dropout=0.5)
    assert type(made.rank) is int and type(made.dropout) is float


def test_variants_are_found_by_their_file():
    assert "lora" in variants.names()
    assert variants.find("lora") is LoRA
    assert variants.make("lora", rank=3) == LoRA(rank=3)


@pytest.mark.parametrize(
    "name, nearest", [("lroa", ".*'lora'"), ("Lora", "'lora'"), ("LoRA", "'lora'")]
)
def test_unknown_variants_are_named(name, nearest):
    with pytest.raises(ValueError, match=f"unknown variant '{name}'; nearest: {nearest}"):
        variants.make(name)


MINE = """
import dataclasses
from lora_jax.methods.lowrank import LowRank

@dataclasses.dataclass(frozen=True)
class Mine(LowRank):
    strength: float = 1.0
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to import from, forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_dotted_name_imports_a_users_file(folder):
    (folder / "my_project").mkdir()
    (folder / "my_project" / "mine.py").write_text(MINE)
    mine = variants.make("my_project.mine", rank=3, strength=2.0)
    assert isinstance(mine, LowRank) and (mine.rank, mine.strength) == (3, 2.0)
    with pytest.raises(ValueError, match=r"unknown variant 'my_project.yours'"):
        variants.make("my_project.yours")
    with pytest.raises(
        ValueError, match=r"'my_project.mine' has no setting 'strenght'; .*'strength'"
    ):
        variants.make("my_project.mine", strenght=2.0)


@pytest.mark.parametrize("text, count", [("", 0), (MINE + MINE.replace("Mine", "Mine2"), 2)])
def test_a_file_defines_one_variant(folder, text, count):
    (folder / "some_project").mkdir()
    (folder / "some_project" / "several.py").write_text(text)
    message = f"'some_project.several' must define one variant, and defines {count}"
    with pytest.raises(ValueError, match=message):
        variants.make("some_project.several")


def test_an_import_that_fails_inside_a_users_file_is_not_hidden(folder):
    (folder / "bad_project").mkdir()
    (folder / "bad_project" / "broken.py").write_text("import a_module_that_is_not_there")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        variants.make("bad_project.broken")


PUBLISHED = {
    "adalora": {"initialization": "normal", "beta1": 0.85, "beta2": 0.85, "delta_t": 1},
    "boft": {"block_size": 4, "butterfly_factors": 2},
    "delora": {"strength": 4.0},
    "dora": {"detach_norm": True},
    "eva": {"initialization": "eva_rho_2"},
    "fourierft": {"frequencies": 1000, "alpha": 150.0},
    "hira": {"alpha": 1.0, "scale": "alpha"},
    "lora_ga": {"initialization": "lora_ga", "scale": "alpha/sqrt(rank)"},
    "lora_one": {"initialization": "lora_one", "scale": "alpha/sqrt(rank)"},
    "lora_plus": {"learning_rate_ratio": 4.0},
    "lora_pro": {"preconditioner": "lora_pro", "damping": 1e-8},
    "oft": {"block_size": 32, "neumann_terms": 0},
    "randlora": {"rank": 32, "alpha": 640.0},
    "riemannian": {"preconditioner": "riemannian", "damping": 1e-6},
    "rslora": {"scale": "alpha/sqrt(rank)"},
    "vblora": {"rank": 4, "num_vectors": 256, "vector_length": 256, "topk": 2},
    "vera": {"rank": 256, "d_init": 0.1},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_method_by_itself_is_as_its_authors_have_it(name):
    """What their papers or code say, by each method's docstring."""
    made = variants.make(name)
    assert {field: getattr(made, field) for field in PUBLISHED[name]} == PUBLISHED[name]
