"""The catalogue as text, Markdown, CSV and JSON; and as the tables of the documents."""

import dataclasses
import json
import re
import textwrap
from typing import Any

from experiments.catalogue.abilities import BY_DATA
from experiments.catalogue.catalogue import MOST_RANKS, Catalogue, Method
from experiments.command_names import shown
from lora_jax.files.marked_documents import fill_blocks
from lora_jax.table import Table, render_tables

FORMATS = ("text", "markdown", "csv", "json")
NONE = "-"
ABILITIES = {
    "product": "product",
    "embedding": "embedding",
    "tied_head": "tied head",
    "merge": "merge",
    "quantized": "NF4 base",
    "layer_ranks": "ranks by layer",
    "trials": "trials at once",
    "resume": "resume",
    "starts_at_base": "starts at W",
    "data": "needs data",
}
"""The headings of a method's abilities, by their names."""
GROUPS = (
    "equal to a plain LoRA, which vLLM serves",
    "equal to a plain LoRA, and starts from data",
    "another change of the weight, which merges into it",
    "no adapter",
)
"""The kinds of methods, in the order of the short table."""
MADE_BY = (
    "Made by `python -m experiments.methods --documents=docs`. `--shape`, `--model` and "
    "`--variant` show other sizes, and your own methods."
)


def write(form: str, catalogue: Catalogue) -> str:
    """The catalogue in one of `FORMATS`."""
    return {"text": _text, "markdown": _markdown, "csv": _csv, "json": _json}[form](catalogue)


def fill(text: str, catalogue: Catalogue) -> str:
    """A document with all tables made anew between `<!-- methods -->` and `<!-- /methods -->`.

    After `<!-- methods: groups -->` stands a short table, which has names alone.
    """

    def table(name: str) -> str:
        return _groups(catalogue) if name else f"{_markdown(catalogue)}\n{MADE_BY}"

    return fill_blocks(text, "methods", table)


def _text(catalogue: Catalogue) -> str:
    heads = ("name", "method", "parameters", "step / LoRA", "vLLM", "PEFT", "paper")
    rows = [
        [each.name, each.title, *_costs(each), each.peft or NONE, _number(each.paper) or NONE]
        for each in catalogue.methods
    ]
    tables = Table(heads, rows, "What there is"), _abilities(catalogue)
    parts = [f"{each.title}\n\n{each.to_text()}" for each in tables]
    lines = (textwrap.fill(note, width=100) for note in notes(catalogue))
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def _markdown(catalogue: Catalogue) -> str:
    heads = ("file", "method", "what it is", "parameters", "step / LoRA", "vLLM", "PEFT", "paper")
    rows = [
        [each.name, each.title, each.idea, *_costs(each), each.peft or NONE, _link(each.paper)]
        for each in catalogue.methods
    ]
    tables = Table(heads, rows, "What there is"), _abilities(catalogue)
    return render_tables("markdown", tables, notes(catalogue))


def _groups(catalogue: Catalogue) -> str:
    """A row for each kind of method, with the names of its methods."""
    groups: dict[str, list[str]] = {}
    for each in sorted(catalogue.methods, key=lambda method: GROUPS.index(_group(method))):
        said = f"[{each.title}]({each.paper})" if each.paper else each.title
        groups.setdefault(_group(each), []).append(said)
    rows = [(group, ", ".join(titles)) for group, titles in groups.items()]
    return Table(("kind", "methods"), rows).to_markdown(escape=False)


def _group(method: Method) -> str:
    if method.abilities is None:
        return GROUPS[3]
    if method.abilities.data:
        return GROUPS[1]
    return GROUPS[2] if method.served_rank is None else GROUPS[0]


def _abilities(catalogue: Catalogue) -> Table:
    rows = []
    for each in catalogue.methods:
        own = each.abilities and dataclasses.asdict(each.abilities)
        rows.append([each.name, *(own[name] or NONE if own else NONE for name in ABILITIES)])
    return Table(("name", *ABILITIES.values()), rows, "What each can")


def notes(catalogue: Catalogue) -> list[str]:
    """What the columns mean, and what a method cannot adapt."""
    where = f", on {catalogue.machine}" if catalogue.machine else ""
    return [
        f"Parameters: those that the adapter of {catalogue.of} begins with, by default settings; "
        "no head.",
        "Step: the time of a training step of MiniLM (32 x 48 tokens) over that of a step with "
        f"LoRA, by python -m benchmarks --suite=methods{where}.",
        "vLLM: the rank of the plain LoRA that is equal (`as_lora`), if it is at most "
        f"{MOST_RANKS}, as vLLM serves; {shown('export')} --as=peft --for=vllm writes "
        "it. Merged (--as=merged), every method is a plain model, which any server loads.",
        "PEFT: the method there; the file's docstring says where the two differ.",
        "Abilities are found by tracing the code. Product, embedding (lookups) and tied head: yes "
        "is without a dense matrix, dense with one as large as the weight. Trials at once: in one "
        "compiled program. Ranks by layer: whether layers of one stacked weight may have ranks of "
        "their own, or who gives them. Starts at W: the adapted model begins as its base. "
        "Methods without an adapter have none of these.",
        *(f"{each.name}: {each.obstacle}." for each in catalogue.methods if each.obstacle),
    ]


def _costs(method: Method) -> tuple[str, str, str]:
    """Parameters, the cost of a step, and the rank in vLLM."""
    parameters = NONE if method.parameters is None else f"{method.parameters:,}"
    step = "not measured" if method.step is None else f"{method.step.middle:.2f}"
    if method.abilities is None:
        return parameters, step, NONE
    mean = " on average" * (method.abilities.layer_ranks == BY_DATA)
    rank = method.served_rank
    return parameters, step, "no" if rank is None else f"rank {rank}{mean}"


def _link(address: str) -> str:
    return f"[{_number(address)}]({address})" if address else NONE


def _number(address: str) -> str:
    """The end of an address, by which arXiv and OpenReview find a paper."""
    return re.split("[/=]", address)[-1]


def _record(method: Method) -> dict[str, Any]:
    """A method as plain values; None for what does not apply, or is not known."""
    own = method.abilities and dataclasses.asdict(method.abilities)
    step = method.step
    return {
        **{name: getattr(method, name) for name in ("name", "title", "idea", "parameters")},
        "obstacle": method.obstacle or None,
        **{name: (own and own[name]) or None for name in (*ABILITIES, "lora_rank")},
        "vllm_rank": method.served_rank,
        "step": step and step.middle,
        "step_low": step and step.low,
        "step_high": step and step.high,
        "peft": method.peft or None,
        "paper": method.paper or None,
    }


def _csv(catalogue: Catalogue) -> str:
    records = [_record(each) for each in catalogue.methods]
    return Table.of_records(list(records[0]), records).to_csv()


def _json(catalogue: Catalogue) -> str:
    records = [_record(each) for each in catalogue.methods]
    whole = {"of": catalogue.of, "machine": catalogue.machine, "methods": records}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
