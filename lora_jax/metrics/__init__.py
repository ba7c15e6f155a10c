"""Scores: of outputs against labels (`label_metrics`) and of texts (`text_metrics`)."""
