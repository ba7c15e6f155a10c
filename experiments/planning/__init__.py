"""Estimate the memory and the time of training, before there are data, weights or devices.

`abstract_step` makes the step from shapes, and estimates its memory from the trace; runs announce
that. `memory_fit` compiles the step for devices of `topologies`. `memory_formula` computes the
memory of decoders by formula. `run_cost` estimates the time of runs. `model_sizes` has published
models.
"""
