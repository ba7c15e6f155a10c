"""Figures of many runs.

Import `scores`: it draws scores by parameters, scores by learning rate, and training curves.
Reports take its labels and styles for their own pictures. `adapter_distance` draws how far adapters
are apart.
"""
