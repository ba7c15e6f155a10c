"""The commands (`python -m experiments.train` and the others), and the packages that they use.

A package may import only those to its left: `setup <- planning <- runs <- sweeps <- analysis <-
tables <- reports`. All may import `cli` and `distributed`.
"""
