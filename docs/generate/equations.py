"""The equations of docstrings, which are plain text, as LaTeX.

`W' = W + s A^T B` is one. Read are names with subscripts and powers (`A_ij`, `U_r^T`,
`(I - Q)^-1`), digits after a letter as a subscript (`A0`), Greek letters by name, `||v||`,
`sqrt(x)`, `sum_i`, `kron`, `mod`, `~` and `...`. A `*` is the product entry by entry. Other words
stay words. Four spaces or more come between two equations of one line.
"""

import re

GREEK = {"alpha", "beta", "gamma", "eta", "theta", "lambda", "Lambda", "Xi", "Sigma"}
OPERATORS = {"kron": r"\otimes", "mod": r"\bmod", "cos": r"\cos", "sin": r"\sin"}
SIGNS = {"*": r"\odot", "~": r"\sim", "...": r"\dots", "..": r"\dots", "<=": r"\le", "@": r"\,"}
TOKEN = re.compile(
    r"""(?P<gap>\s{2,}) | (?P<space>\s)
    | (?P<norm>\|\|)
    | (?P<name>[A-Za-z]+)(?P<digits>\d*)(?P<prime>'?)(?P<sub>_(?:\w+|\{[^}]*\}))?
    | (?P<power>\^(?:T\b|-?\d+|\([^()]*\)|\{[^}]*\}))
    | (?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)
    | (?P<sign>\.\.\.|\.\.|<=|[-+=/*~@,.;:()\[\]])""",
    re.VERBOSE,
)


def latex(equation: str) -> str:
    """One line of plain-text maths as LaTeX.

    Raises:
      ValueError: the line has a sign that is not known.
    """
    equation, out, at, in_norm = equation.strip(), [], 0, False
    while at < len(equation):
        found = TOKEN.match(equation, at)
        if found is None:
            raise ValueError(f"no LaTeX for '{equation[at]}' in '{equation}'")
        at = found.end()
        if found["name"] == "sqrt" and equation[at : at + 1] == "(":
            end = _closing(equation, at)
            out.append(rf"\sqrt{{{latex(equation[at + 1 : end])}}}")
            at = end + 1
        elif found["norm"]:
            out.append(r"\rVert" if in_norm else r"\lVert")
            in_norm = not in_norm
        else:
            out.append(_token(found, equation))
    return " ".join(each for each in out if each)


def _token(found: re.Match[str], equation: str) -> str:
    if found["gap"]:
        return r"\qquad"
    if found["space"]:
        return ""
    if found["name"]:
        return _name(found, equation)
    if found["power"]:
        return f"^{{{_inside(found['power'])}}}"
    return SIGNS.get(found[0], found[0])


def _name(found: re.Match[str], equation: str) -> str:
    name, sub = found["name"], found["digits"] + _inside(found["sub"] or "")
    if name == "sum" and sub:
        name = r"\sum"
    elif name in OPERATORS:
        name = OPERATORS[name]
    elif name in GREEK:
        name = rf"\{name}"
    elif len(name) == 2 and name[0] == "d" and name[1].isupper():
        name = rf"\mathrm{{d}}{name[1]}"  # a differential, or a step: dL, dW
    elif len(name) > 1 and (equation[found.end() :].startswith("(") or found["sub"]):
        name = rf"\operatorname{{{name}}}"
    elif len(name) > 1:
        before, after = equation[: found.start()], equation[found.end() :]
        left = r"\;" * bool(re.search(r"[\w\])|]\s$", before))
        right = r"\;" * bool(re.match(r"\s(?:\w\b|\w_|[(\[|])", after))
        name = rf"{left}\text{{{name}}}{right}"
    return name + (f"_{{{sub}}}" if sub else "") + found["prime"]


def _inside(text: str) -> str:
    """The content of a subscript or a power."""
    text = text.lstrip("_^").strip("{}()")
    return r"\top" if text == "T" else text.replace("..", r" \dots ")


def _closing(text: str, at: int) -> int:
    """The place of the parenthesis that closes the one at `at`."""
    depth = 0
    for place in range(at, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"a parenthesis stays open in '{text}'")
