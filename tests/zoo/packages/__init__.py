"""Strangers' models, by the package that they come from: how a user makes and calls each of them.

Every public function makes one family. Its lines up to the last are those of the page on these
models, which the site makes of them.
"""
