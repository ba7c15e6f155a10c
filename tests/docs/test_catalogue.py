"""The table of methods: its facts are those of the code, of closed forms, and of the documents."""

import csv
import dataclasses
import io
import json
from unittest.mock import Mock

import commands
import jax
import jax.numpy as jnp
import own_method
import pytest
from make_fixtures.peft_methods import METHODS

import lora_jax as lj
import variants
from benchmarks.cases import Plan
from benchmarks.results import Found, Measured, content
from experiments.catalogue import catalogue, methods_tables
from experiments.catalogue.abilities import abilities
from lora_jax.files import marked_documents
from lora_jax.transform.adapt import init_shapes
from lora_jax.variant import Factors
from variants.ia3 import IA3
from variants.lora import LoRA

ADAPTING = [name for name in variants.names() if variants.find(name).adapts]


@pytest.fixture(scope="module")
def shipped():
    return catalogue.of_matrix(catalogue.shape_of(catalogue.SHAPE))


def test_documents_have_the_tables(shipped):
    texts = [path.read_text(encoding="utf-8") for path in marked_documents.files()]
    assert [text for text in texts if methods_tables.fill(text, shipped) != text] == []
    for marker in ("<!-- methods -->", "<!-- methods: groups -->"):
        assert sum(text.count(marker) for text in texts) == 1


def test_the_short_table_has_every_method_once(shipped):
    marks = "<!-- methods: groups -->\n", "<!-- /methods -->"
    made = (
        methods_tables.fill("old\n".join(marks), shipped)
        .removeprefix(marks[0])
        .removesuffix(marks[1])
    )
    rows = dict(line.strip("| ").split(" | ") for line in made.splitlines()[2:])
    assert sorted(", ".join(rows.values()).split(", ")) == sorted(
        f"[{each.title}]({each.paper})" if each.paper else each.title for each in shipped.methods
    )
    kinds = dict(zip(("plain", "data", "merged", "none"), rows.values(), strict=True))
    assert "PiSSA" in kinds["plain"] and "EVA" in kinds["data"]
    assert "DoRA" in kinds["merged"] and "BitFit" in kinds["none"]


def test_every_method_has_a_row_of_plain_values(shipped):
    rows = json.loads(methods_tables.write("json", shipped))["methods"]
    assert sorted(row["name"] for row in rows) == variants.names()
    lines = list(csv.DictReader(io.StringIO(methods_tables.write("csv", shipped))))
    assert [list(line) for line in lines] == [list(row) for row in rows]
    by_name = {row["name"]: row for row in rows}
    ranks = {"lora": 8, "pissa": 16, "loha": 64, "vera": 256, "hra": 8, "dora": None, "ia3": None}
    assert {name: by_name[name]["vllm_rank"] for name in ranks} == ranks
    sizes = {"lora": 8 * 2 * 768, "dora": 17 * 768, "vera": 256 + 768, "full": 768**2, "bitfit": 0}
    assert {name: by_name[name]["parameters"] for name in sizes} == sizes
    assert by_name["full"]["merge"] is None and by_name["lora"]["step"] == 1
    shown = methods_tables.write("text", shipped)
    assert f"\n{'lora_plus':<16}  LoRA+ " in shown and "needs data" in shown


def test_methods_that_equal_pefts_say_which_these_are():
    assert [name for name in METHODS if not variants.find(name).peft] == []


def test_a_method_of_ones_own(tmp_path):
    with own_method.installed(tmp_path):
        names = own_method.NAME, own_method.RANKLESS
        rows = {each.name: each for each in catalogue.of_matrix((64, 48), names).methods}
        wide, columns = (rows[name] for name in names)
        with pytest.raises(ValueError, match="PYTHONPATH has no module 'my_package'"):
            catalogue.of_matrix((64, 48), ["my_package.columns"])
        broken = "from variants.lora import LoRA\n\nclass Broken(LoRA):\n    init = None\n"
        (tmp_path / "own_package" / "broken.py").write_text(broken, encoding="utf-8")
        with pytest.raises(ValueError, match=r"^variant 'own_package.broken': TypeError: .*check"):
            catalogue.of_matrix((64, 48), ["own_package.broken"])
    assert (columns.title, columns.idea, columns.parameters) == ("my columns", "", 48)
    assert (columns.paper, columns.peft, columns.served_rank) == ("", "", None)
    assert columns.abilities.product == columns.abilities.embedding == "dense"
    assert columns.abilities.layer_ranks == "" and columns.abilities.merge == "yes"
    assert (wide.parameters, wide.served_rank, wide.step) == (8 * (64 + 48), 8, None)
    assert wide.abilities.product == "yes"


@pytest.mark.parametrize("name", [n for n in ADAPTING if hasattr(variants.make(n), "rank")])
def test_layers_may_differ_in_rank_where_the_table_says_so(name):
    """The transform itself, from shapes, is the truth."""
    said, variant = abilities(variants.make(name)).layer_ranks, variants.make(name)
    other = dataclasses.replace(variant, rank=2 * variant.rank)
    params = {"kernel": jax.ShapeDtypeStruct((2, 1024, 1024), jnp.float32)}
    x = jax.ShapeDtypeStruct((1, 1024), jnp.float32)

    def forward(params, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, params["kernel"])[0]

    adapted = lj.adapt(forward, None, {lj.layers("kernel", 0): other, "kernel": variant})
    try:
        init_shapes(adapted, jax.random.key(0), params, x)
    except ValueError:
        assert said in ("no", "by data", "in training")
    else:
        assert said == ("by data" if variant.allots else "yes")


class Lacking(LoRA):
    """LoRA without lookups and several trials, which keeps a key."""

    def init(self, key, base):
        trainable, constants = super().init(key, base)
        return Factors(trainable, {**constants, "key": key})

    def take(self, rows, base, factors):
        raise NotImplementedError

    def dot(self, x, base, factors, *, dropout_key=None):
        def once(a):
            raise NotImplementedError

        same = jax.custom_batching.custom_vmap(lambda a: a)
        same.def_vmap(lambda size, batched, a: once(a))
        factors.trainable["a"] = same(factors.trainable["a"])
        return super().dot(x, base, factors)


class OfABudget(IA3):
    """A method whose rank is no field."""

    @property
    def rank(self):
        return 8


class DenseInside(LoRA):
    """LoRA whose lookups form a dense matrix in an inner program."""

    def take(self, rows, base, factors):
        return jax.jit(lambda weight: (2 * weight)[rows])(base.dense())


def test_what_a_method_cannot_do():
    for method, can in ((LoRA(), "yes"), (Lacking(), "no")):
        able = abilities(method)
        assert (able.embedding, able.trials, able.resume) == (can, can, can)
    assert abilities(DenseInside()).embedding == "dense"
    assert abilities(OfABudget()).layer_ranks == ""
    hira = abilities(variants.make("hira"))
    assert (hira.product, hira.embedding, hira.tied_head) == ("dense", "yes", "dense")
    assert [abilities(variants.make(name)).data for name in ("lora_ga", "eva")] == [
        "gradient",
        "inputs",
    ]
    assert abilities(variants.make("eva")).trials == "no"


def test_papers_are_found_in_docstrings():
    found = [catalogue.paper(variants.find(name)) for name in ("fourierft", "hira", "full")]
    assert found == [
        "https://arxiv.org/abs/2405.03003",  # its number is on the next line
        "https://openreview.net/forum?id=TwJrTz9cRS",
        "",
    ]
    assert catalogue.ARXIV.search("see https://arxiv.org/abs/2310.02556.")[1] == "2310.02556"
    assert catalogue.idea(variants.find("lora_plus")) == "B learns faster than A"


def test_parameters_of_whole_models():
    """MiniLM's as the quickstart trains them, and LoRA's of Llama 2 7B, by hand."""
    found = {each.name: each.parameters for each in catalogue.of_model("minilm").methods}
    assert found["lora"] == 332_546 - 2 * 385
    assert (found["ia3"], found["trainable_tokens"]) == (6 * (2 * 384 + 1536), 384)
    assert found["head_only"] == 0
    llama = catalogue.model("meta-llama/Llama-2-7b-hf")
    of_block = 4 * (4096 + 4096) + 3 * (4096 + 11008)
    assert catalogue.trained("lora", (catalogue.LINEARS,), llama) == 32 * 8 * of_block


def test_a_model_that_is_nowhere(monkeypatch):
    monkeypatch.setattr(catalogue, "locate", Mock(side_effect=FileNotFoundError("not there")))
    with pytest.raises(FileNotFoundError, match=r"^not there; nearest: 'meta-llama/Llama-2-7b-hf'"):
        catalogue.model("meta-llama/Llama-2-7b")
    with pytest.raises(FileNotFoundError, match=r"^not there$"):
        catalogue.model("zzzz")


def test_costs_are_those_that_were_measured(tmp_path):
    path = tmp_path / "methods.json"
    one = catalogue.StepCost(1.0, 1.0, 1.0)
    assert catalogue.read_costs(path) == catalogue.StepCosts({"lora": one})
    found = content("methods", Plan(), [Measured("dora", ratios=[Found("", 1.25, 1.2, 1.5)])])
    path.write_text(json.dumps(found), encoding="utf-8")
    costs = catalogue.read_costs(path)
    assert costs.ratios == {"lora": one, "dora": catalogue.StepCost(1.25, 1.2, 1.5)}
    assert " cores, jax 0." in costs.machine
    path.write_text(json.dumps(found | {"smoke": True}), encoding="utf-8")
    assert "dora" not in catalogue.read_costs(path).ratios


@pytest.mark.slow
def test_the_command_says_what_a_matrix_is_too_small_for():
    done = commands.run("experiments.methods", "--shape=4x64", "--format=json")
    rows = {row["name"]: row for row in json.loads(done.stdout)["methods"]}
    assert rows["pissa"]["parameters"] is None and rows["ia3"]["parameters"] == 64
    assert rows["lora"]["parameters"] == 8 * (4 + 64)  # what is drawn may have any rank
    assert rows["pissa"]["obstacle"] == (
        "'kernel': initialization 'pissa' takes rank = 8 directions, more than min(in, out) = 4 of "
        "(4, 64)"
    )
    assert rows["pissa"]["merge"] == "yes"


@pytest.mark.parametrize("shape", ["768", "768x0", "768x768x2", "axb", ""])
def test_a_shape_that_is_none(shape):
    said = rf"^--shape={shape}: expected INPUTSxOUTPUTS, such as --shape=768x768$"
    with pytest.raises(ValueError, match=said):
        catalogue.shape_of(shape)
