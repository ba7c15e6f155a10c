"""How Sphinx builds the site: pages by hand in Markdown, and pages made from the code."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sphinx.application import Sphinx

from docs.generate import methods, pages
from docs.generate.docstrings import lines_for_autodoc

project = "lora-jax"
copyright = "the lora-jax authors"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "docs.generate.mathml",
]
exclude_patterns = ["generate"]
html_math_renderer = "mathml"
html_theme = "furo"
pygments_dark_style = "github-dark"
smartquotes = False  # they would make one dash of the two of a flag
html_title = "lora-jax"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

# The side bar lists pages; with the names of all objects it costs a third of the build.
toc_object_entries = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# The same class is documented under the name that programs use, and where it is defined.
suppress_warnings = ["ref.python"]


def setup(app: Sphinx) -> None:
    pages.write()
    app.connect("source-read", _with_pages_of_methods)
    # Before Napoleon, which reads `Args:` and `Raises:`.
    app.connect("autodoc-process-docstring", _as_rst, priority=100)


def _with_pages_of_methods(app: Sphinx, page: str, text: list[str]) -> None:
    if page == "reference/methods":
        text[:] = map(methods.with_pages, text)


def _as_rst(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]):
    lines[:] = lines_for_autodoc(lines)
