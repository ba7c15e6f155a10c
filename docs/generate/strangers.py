"""The page on strangers' models: the lines that make and adapt each model of the zoo, as tested."""

import ast
from pathlib import Path

PACKAGES = Path(__file__).parents[2] / "tests" / "zoo" / "packages"
HEAD = """\
# Models of other packages

These models come from other packages, and no line of them was changed. `make zoo` tests each with
a small random configuration: what the targets select, that the adapted model and its gradients are
those of the merged model, and that one compiled program trains it. It also lets eqx-zoo read two
published models that this library reads: all-MiniLM-L6-v2 from the same file, and
SmolLM2-135M-Instruct from a folder that this library exports from its GGUF file. With one adapter,
both packages give the same logits, and the same gradients of its factors.

`Family(forward, params, inputs, targets)` holds what you give to
`lj.adapt(forward, variants.make("lora"), targets)`, where `"all-linear"` may be left out, and to
`adapted.init(key, params, *inputs)`. Functions that begin with `_` are shared by the models of a
package.
"""


def pages() -> list[tuple[str, str]]:
    """The name and text of the page."""
    return [("strangers.md", "\n".join([HEAD, *map(_package, sorted(PACKAGES.glob("[a-z]*.py")))]))]


def _package(path: Path) -> str:
    """What a package's models have in common, and the lines of each."""
    text = path.read_text(encoding="utf-8")
    module = ast.parse(text)
    title, _, what = (ast.get_docstring(module) or path.stem).partition(":")
    parts = [f"## {title}\n\nWhat is adapted: {what.strip()}\n"]
    for node in module.body:
        if isinstance(node, ast.FunctionDef):
            parts.append(f"```python\n{ast.get_source_segment(text, node)}\n```\n")
    return "\n".join(parts)
