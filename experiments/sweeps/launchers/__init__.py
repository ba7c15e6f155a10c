"""How jobs are started.

`local` starts processes on this machine, `slurm` submits jobs, and `ray` runs tasks on a Ray
cluster; each file has the flags of its launcher. `launch` gives the jobs of a sweep to one of them.
Only `experiments.sweep` imports these.
"""
