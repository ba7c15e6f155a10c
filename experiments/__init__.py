"""The commands (`python -m experiments.train` and the others), and the packages that they use.

A package may import only those to its left: `distributed <- setup <- tracking <- planning <- runs
<- imports <- serving <- sweeps <- analysis <- search <- studies <- tables <- catalogue <- exports
<- figures <- reports`. The commands import these and `cli`; nothing imports a command.
`tests/test_imports.py` keeps this order.
"""

from experiments.command_names import prepare

prepare()
