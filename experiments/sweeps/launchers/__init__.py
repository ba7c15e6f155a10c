"""How jobs are started.

`local` starts processes on this machine, and `slurm` submits jobs. Only `experiments.sweep` imports
these.
"""
