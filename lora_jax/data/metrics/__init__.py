"""Scores of a model, on NumPy arrays and texts; nothing here uses a device.

Import `label_metrics` for outputs against labels, and `text_metrics` for texts against references.
"""
