"""Estimate the memory and the time of training, before there are data, weights or devices.

`memory_formula` computes it. `abstract_step` makes the step from shapes. `memory_fit` compiles it
for a topology (`topologies`), and `topology_search` looks for the smallest one that fits. Runs
import `step_memory`, an estimate from the shapes alone. `run_cost` estimates the time
of runs on `accelerators`, with the sizes of `model_sizes` and `data_sizes`. `show` and
`memory_tables` make tables for the commands.
"""
