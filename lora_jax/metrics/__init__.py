"""Scores on NumPy arrays: of labels (`label_metrics`) and of texts (`text_metrics`)."""
