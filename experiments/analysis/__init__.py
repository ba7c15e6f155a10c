"""Analyse records: which runs are comparable, which method is best, and how certain that is."""
