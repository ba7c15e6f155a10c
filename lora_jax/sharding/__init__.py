"""Devices: meshes, where the arrays of a run lie on them, and the memory that there is.

`mesh` makes meshes and places a model's weights; `layout` derives the places of adapters, states
and batches from them; `memory` says what a device or this machine has left.
"""
