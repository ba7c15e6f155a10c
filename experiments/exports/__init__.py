"""Finished runs in the formats of others: open a run, find a format, and write it.

Each file of `formats/` is a format.
"""
