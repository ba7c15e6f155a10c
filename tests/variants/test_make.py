"""The ways of naming and setting a variant: `variants.make` and `variants.find`."""

import re
import sys

import numpy as np
import pytest

import variants
from lora_jax.methods.lowrank import LowRank
from variants.lora import LoRA


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("lora", {"rank": 0}, "rank must be an integer of at least 1, got 0"),
        ("lora", {"rank": 2.5}, "rank must be an integer of at least 1, got 2.5"),
        ("lora", {"alpha": float("inf")}, "alpha must be a finite number, got inf"),
        ("lora", {"alpha": 10**400}, "alpha must be a finite number, got one of too many digits"),
        ("lora", {"rank": 4, "max_rank": 3}, "max_rank 3 is below rank 4"),
        ("lora", {"dropout": 1.0}, "dropout must be in [0, 1), got 1.0"),
        ("lora", {"dropout": -0.1}, "dropout must be in [0, 1), got -0.1"),
        ("lora", {"scale": "alpha/rnk"}, "scale 'alpha/rnk' is unknown; nearest: 'alpha/rank'"),
        (
            "lora",
            {"initialization": "gausian"},
            "initialization 'gausian' is unknown; nearest: 'gaussian'",
        ),
        (
            "lora",
            {"learning_rate_ratio": -2},
            "learning_rate_ratio must be finite and at least 0, got -2",
        ),
        (
            "lora",
            {"initialization": "orthogonal", "rank": 5},
            "'orthogonal' needs an even rank, got 5",
        ),
        ("lora", {"rank": True}, "variant 'lora': rank must be a number, got True"),
        ("lora", {"max_rank": "9"}, "variant 'lora': max_rank must be a number, got '9'"),
        ("lora", {"dropout": "a"}, "variant 'lora': dropout must be a number, got 'a'"),
        (
            "lora",
            {"initialization": True},
            "variant 'lora': initialization must be a text, got True",
        ),
        ("lora", {"scale": 2.0}, "variant 'lora': scale must be a text, got 2.0"),
        ("lora", {"alhpa": 1.0}, "variant 'lora' has no setting 'alhpa'; nearest: 'alpha'"),
        (
            "lora",
            {"initialization": "pisa"},
            "initialization 'pisa' is unknown; nearest: 'pissa', 'pissa_niter_4'",
        ),
        (
            "lora",
            {"initialization": "pissa_niter_"},
            "initialization 'pissa_niter_' is unknown; nearest:",
        ),
        (
            "lora",
            {"initialization": "pissa_niter_-1"},
            "initialization 'pissa_niter_-1' is unknown;",
        ),
        (
            "lora",
            {"initialization": ""},
            "initialization '' is unknown; nearest: 'kaiming_uniform'",
        ),
        (
            "lora",
            {"initialization": "pissa", "alpha": 0.0},
            "initialization 'pissa' needs a positive alpha, got 0.0",
        ),
        (
            "lora",
            {"initialization": "milora", "alpha": -1.0},
            "initialization 'milora' needs a positive alpha, got -1.0",
        ),
        (
            "lora",
            {"initialization": "pissa_niter_4", "alpha": -1.0},
            "initialization 'pissa_niter_4' needs a positive alpha, got -1.0",
        ),
        ("adalora", {"mode": "papers"}, "mode 'papers' is unknown; nearest: 'paper'"),
        ("adalora", {"target_rank": 13}, "target_rank 13 exceeds rank 12"),
        ("adalora", {"target_rank": 0}, "target_rank must be an integer of at least 1, got 0"),
        (
            "adalora",
            {"total_steps": 1e3},
            "total_steps must be an integer of at least 1, got 1000.0",
        ),
        ("adalora", {"delta_t": 0}, "delta_t must be an integer of at least 1, got 0"),
        ("adalora", {"t_init": -1}, "t_init must be an integer of at least 0, got -1"),
        (
            "adalora",
            {"t_init": 500},
            "t_init + t_final = 500 + 500 must be below total_steps = 1000",
        ),
        (
            "adalora",
            {"total_steps": 9, "t_final": 9},
            "t_init + t_final = 0 + 9 must be below total_steps = 9",
        ),
        ("adalora", {"beta1": 1.0}, "betas must be in [0, 1), got 1.0 and 0.85"),
        ("adalora", {"orthogonality": -0.1}, "orthogonality must be at least 0, got -0.1"),
        ("adalora", {"max_rank": 16}, "AdaLoRA chooses ranks itself: leave max_rank out"),
        ("lokr", {"rank": 0}, "rank must be an integer of at least 1, got 0"),
        ("lokr", {"alpha": np.inf}, "alpha must be a finite number, got inf"),
        ("lokr", {"factor": 0}, "factor must be -1 or an integer of at least 1, got 0"),
        ("lokr", {"dropout": 1.0}, "dropout must be in [0, 1), got 1.0"),
        ("lora_xs", {"rank": 1.0}, "rank must be an integer of at least 1, got 1.0"),
        ("hra", {"rank": 3}, "HRA needs an even rank, to start at the weight, got 3"),
        ("fourierft", {"frequencies": 0}, "frequencies must be an integer of at least 1, got 0"),
        ("oft", {"block_size": 1}, "block_size must be an integer of at least 2, got 1"),
        ("c3a", {"block_size": 0}, "block_size must be an integer of at least 1, got 0"),
        ("road", {"per_pair": 3}, "per_pair must be 1, 2 or 4, got 3"),
        ("road", {"group_size": 1}, "group_size must be an integer of at least 2, got 1"),
        ("boft", {"block_size": 1}, "block_size must be an integer of at least 2, got 1"),
        ("oft", {"neumann_terms": 3}, "neumann_terms must be an integer of at least 4, got 3"),
        ("road", {"biases": "no"}, "variant 'road': biases must be true or false, got 'no'"),
        ("delora", {"strength": 0.0}, "strength must not be 0: nothing would train"),
        ("trainable_tokens", {"tokens": 5}, "tokens must be a list of whole numbers, got 5"),
        ("gralora", {"blocks": 3}, "3 blocks do not divide rank 8"),
        ("ia3", {"scales": "both"}, "scales 'both': expected outputs or inputs"),
        ("miss", {"rank": 2.0}, "rank must be an integer of at least 1, got 2.0"),
        ("miss", {"dropout": -0.1}, "dropout must be in [0, 1), got -0.1"),
        ("vblora", {"topk": 0}, "topk must be an integer of at least 1, got 0"),
        (
            "vblora",
            {"vector_length": 2.0},
            "vector_length must be an integer of at least 1, got 2.0",
        ),
        ("vblora", {"topk": 3, "num_vectors": 2}, "topk 3 exceeds num_vectors 2"),
        ("vera", {"rank": 2.5}, "rank must be an integer of at least 1, got 2.5"),
        ("vera", {"d_init": 0.0}, "d_init must not be 0: nothing would train"),
        ("vera", {"dropout": 1.0}, "dropout must be in [0, 1), got 1.0"),
        ("gralora", {"max_rank": 9}, "2 blocks do not divide max_rank 9"),
        ("gralora", {"initialization": "eva"}, "GraLoRA takes no start from data, as 'eva' is"),
        ("lora", {"initialization": "eva_rho_0.5"}, "unknown; nearest: 'eva_rho_2'"),
        ("lora", {"initialization": "eva_rho_2", "max_rank": 9}, "takes no max_rank"),
        ("adalora", {"initialization": "eva_rho_2"}, "AdaLoRA chooses ranks itself"),
        *(
            (name, {"initialization": "loftq"}, "initialization 'loftq' is for W + s A^T B")
            for name in ("dora", "gralora", "hira", "loha", "adalora")
        ),
        ("lora", {"initialization": "loftq_iter_0"}, "is unknown; nearest: 'loftq_iter_5'"),
        ("lora", {"initialization": "loftq", "alpha": 0.0}, "'loftq' needs a positive alpha"),
        ("lora", {"preconditioner": "rieman"}, "'rieman' is unknown; nearest: 'riemannian'"),
        ("riemannian", {"damping": 0.0}, "damping must be above 0 in float32, got 0.0"),
        ("riemannian", {"damping": 1e-50}, "damping must be above 0 in float32, got 1e-50"),
        ("riemannian", {"damping": None}, "damping must be a finite number, got None"),
        ("lora_pro", {"alpha": 0.0}, "alpha must not be 0"),
        ("adalora", {"preconditioner": "riemannian"}, "a factor e that no preconditioner"),
        ("dora", {"preconditioner": "lora_pro"}, "for W + s A^T B, which DoRA is not"),
        ("gralora", {"preconditioner": "lora_pro"}, "for W + s A^T B, which GraLoRA is not"),
        ("bitfit", {"pattern": "(bias"}, "pattern '(bias' is not a regular expression: "),
        ("vera", {"alpha": 8}, "variant 'vera' has no setting 'alpha'"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        variants.make(name, **settings)
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
