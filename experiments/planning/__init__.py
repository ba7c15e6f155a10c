"""Estimate the memory of a training step, before there are data, weights or devices.

`memory_formula` computes it. `memory_fit` compiles the step for a topology (`topologies`), and
`topology_search` looks for the smallest one that fits. Runs import `step_memory`, an estimate from
shapes alone. `show` and `memory_tables` make tables for the commands.
"""
