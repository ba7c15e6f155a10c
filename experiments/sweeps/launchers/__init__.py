"""How jobs are started, one file for each `--launcher`.

`local` starts processes on this machine, `slurm` submits jobs, and `commands` makes a command line
for each job. Only `experiments.sweep` imports these.
"""
