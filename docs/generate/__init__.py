"""Pages of the site that are made from the code: methods, names, commands, strangers' models.

`methods`, `api`, `commands` and `strangers` each give the text of their pages; `pages` writes them,
with the changelog, the rules for contributors and the page on security, into `docs/generated/`,
which Git ignores. `docstrings` and `equations` turn docstrings into reStructuredText, and `counts`
turns a method's `count` into a formula. `mathml` shows equations without a script.
"""
