"""The formula of a method's parameter count, from the code of its `count`."""

import ast
import inspect
import re
import textwrap

from docs.generate.docstrings import escaped
from lora_jax.variant import Variant


def lines(kind: type[Variant]) -> list[str]:
    """The formula of a method, and what each size in it means that the code looks for.

    It is empty where the count takes more than one expression of settings and sizes.
    """
    expression = _returned(kind)
    if expression is None:
        return []
    text = ast.unparse(expression).replace("inputs", "in").replace("outputs", "out")
    names = [node.id for node in ast.walk(expression) if isinstance(node, ast.Name)]
    helpers = {each: getattr(kind, f"_{each}", None) for each in names}
    meanings = {each: inspect.getdoc(helper) for each, helper in helpers.items() if helper}
    return [
        f"::\n\n   {text}",
        *(f"``{each}``: {escaped(said)}" for each, said in meanings.items() if said),
    ]


def _returned(kind: type[Variant]) -> ast.expr | None:
    """The expression that `count` returns, in names of sizes and settings alone."""
    owner = next(each for each in kind.__mro__ if "count" in vars(each))
    function = ast.parse(textwrap.dedent(inspect.getsource(owner.count))).body[0]
    assert isinstance(function, ast.FunctionDef)
    body = [each for each in function.body if not _is_docstring(each)]
    if len(body) != 1 or not isinstance(body[0], ast.Return) or body[0].value is None:
        return None
    found = _Plain(owner).visit(body[0].value)
    plain = (ast.Name, ast.Constant, ast.BinOp, ast.operator, ast.Load, ast.UnaryOp, ast.unaryop)
    known = all(isinstance(node, plain) for node in ast.walk(found))
    return found if known else None


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


class _Plain(ast.NodeTransformer):
    """Sizes for `shape[0]`, `shape[1]` and `sum(shape)`, settings without `self`."""

    def __init__(self, owner: type[Variant]):
        self.owner = owner

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        sizes = {"shape[0]": "inputs", "shape[1]": "outputs"}
        name = sizes.get(ast.unparse(node))
        return ast.Name(name) if name else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return ast.Name(node.attr) if ast.unparse(node.value) == "self" else node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if ast.unparse(node) == "sum(shape)":
            return ast.BinOp(ast.Name("inputs"), ast.Add(), ast.Name("outputs"))
        if ast.unparse(node) == "min(shape)":
            return ast.Name("min(inputs, outputs)")
        if ast.unparse(node) == "super().count(shape)":
            above = next(k for k in self.owner.__mro__[1:] if "count" in vars(k))
            return _returned(above) or node
        if (name := re.fullmatch(r"self\._(\w+)\(shape\)", ast.unparse(node))) is not None:
            return ast.Name(name[1])
        return node
