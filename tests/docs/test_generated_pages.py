"""Every method, public name and command has a page, and what the pages say agrees with the code."""

import concurrent.futures
import re

import commands as processes
import jax
import numpy as np
import pytest

import lora_jax
import variants
from docs.generate import api, commands, counts, equations, methods, pages as site, snippets
from docs.generate.docstrings import lines_for_autodoc, prose

LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")  # to a file
ADAPTERS = [name for name in variants.names() if variants.find(name).adapts]


@pytest.fixture(scope="module")
def pages():
    return dict(methods.pages())


@pytest.mark.parametrize("name", site.OF_THE_ROOT)
def test_links_of_a_file_of_the_root_lead_on(name):
    there = LINK.findall(site.of_the_root(name))
    assert [link for link in there if not (site.FOLDER / link).resolve().exists()] == []
    assert there or name != "SECURITY"  # which has links


def test_every_method_has_a_page(pages):
    assert pages.keys() == {f"{name}.rst" for name in variants.names()}
    table = methods.with_pages((processes.ROOT / "docs/reference/methods.md").read_text("utf-8"))
    linked = re.findall(r"\]\(\.\./generated/methods/(\w+)\.rst\)", table)
    assert set(linked) == set(variants.names())


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_method_shows_its_equation(name, pages):
    assert ".. math::" in pages[f"{name}.rst"]


def test_every_setting_has_a_meaning(pages):
    """An empty cell of a table is a setting without a docstring."""
    empty = [name for name, text in pages.items() if re.search(r"^     -\s*$", text, re.M)]
    assert empty == []


@pytest.mark.parametrize("name", ADAPTERS)
def test_formulas_count_what_the_code_counts(name):
    variant, lines = variants.make(name), counts.lines(variants.find(name))
    for shape in [(24, 36), (36, 24)] if lines else []:
        fields = {**vars(variant), "inputs": shape[0], "outputs": shape[1]}
        for each in ("block", "length", "terms"):
            if hasattr(variant, f"_{each}"):
                fields[each] = getattr(variant, f"_{each}")(shape)
        formula = re.sub(r"\b(in|out)\b", r"\1puts", lines[0].partition("::")[2].strip())
        assert eval(formula, {"min": min}, fields) == variant.count(shape)


def test_most_methods_have_a_formula():
    assert sum(bool(counts.lines(variants.find(name))) for name in ADAPTERS) >= 0.85 * len(ADAPTERS)


def test_every_public_name_has_a_page():
    public = [name for name in dir(lora_jax) if name != "__version__"]
    assert len(public) > 40
    assert {f"{name}.rst" for name in public} <= dict(api.pages()).keys()


def test_a_command_is_read_with_its_flags():
    """In a process of its own, as the page of each command is made."""
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=processes.CONTEXT) as pool:
        command = pool.submit(commands._read, "methods").result()
    said = "The format of the tables. The default is text."
    assert commands.Flag("--format=text|markdown|csv|json", said) in command.flags


@pytest.mark.parametrize(
    "plain, latex",
    [
        ("W' = W + s A^T B", r"W' = W + s A ^{\top} B"),
        ("A0 = sqrt(S_r / s) U_r^T", r"A_{0} = \sqrt{S_{r} / s} U_{r} ^{\top}"),
        ("W' = m * V / ||V||", r"W' = m \odot V / \lVert V \rVert"),
        ("(I - Q_i)^-1,    C kron D", r"( I - Q_{i} ) ^{-1} , \qquad C \otimes D"),
        ("diag(lambda_i) B where i mod rank = k",
         r"\operatorname{diag} ( \lambda_{i} ) B \;\text{where}\; i \bmod \;\text{rank} = k"),
    ],
)  # fmt: skip
def test_plain_maths_becomes_latex(plain, latex):
    assert equations.latex(plain) == latex


@pytest.mark.parametrize("wrong", ["f(x) = {1}", "A = sqrt(B", 'x="text"'])
def test_other_signs_have_no_latex(wrong):
    with pytest.raises(ValueError, match=r"no LaTeX for|stays open"):
        equations.latex(wrong)


def test_prose_keeps_signs_that_markup_would_take():
    said = prose(
        "Of `x*` and a * b_ (arXiv 2106.09685).\n\n    W' = 2 W\n\n    {no: maths}\n\nEnd."
    )
    assert (
        r"Of ``x*`` and a \* b\_ (`arXiv 2106.09685 <https://arxiv.org/abs/2106.09685>`__)." in said
    )
    assert r".. math:: W' = 2 W" in said
    assert "::\n\n   {no: maths}" in said


def test_lists_stay_lists():
    said = prose("Two:\n\n* one\n  `x`\n* two\n\nEnd.")
    assert said == "Two:\n\n* one ``x``\n* two\n\nEnd."


def test_docstrings_for_autodoc_keep_their_sections():
    lines = ["It does `it`.", "", "    code(*here)", "", "Args:", "  x: an `Array`, |x| < 1.", ""]
    assert lines_for_autodoc(lines) == [
        "It does ``it``.", "", "::", "", "    code(*here)", "",
        "Args:", r"  x: an ``Array``, \|x\| < 1.", "",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["lora", "head_only", "lora_ga", "trainable_tokens"])
def test_an_example_runs(name, standard_promotion):
    """One of each kind; examples of one kind differ in the method's name alone."""
    names: dict = {}
    with jax.numpy_rank_promotion("allow"):  # as users have it
        exec(snippets.snippet(name), names)
    before, after = names["params"], names["merged"]
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    for leaf in before:
        np.testing.assert_allclose(before[leaf], after[leaf], atol=1e-5)
