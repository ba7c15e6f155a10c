"""Devices: meshes, how the arrays of a run are sharded over them, and available memory.

`mesh` makes meshes and shards a model's weights. `layout` derives the shardings of adapters, states
and batches from these. `memory` says how much a device or this machine has left.
"""
