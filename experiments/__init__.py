"""The commands (`python -m experiments.train` and the others), and the rooms that they use.

Imports run `setup <- planning <- runs <- sweeps <- analysis <- tables <- reports`; `cli` and
`distributed` may be used by all.
"""
