"""How jobs are started.

`local` starts processes on this machine, `slurm` submits jobs, and `ray_jobs` runs Ray tasks on the
cluster of `ray_cluster`. `kubernetes` writes a file for kubectl. The flags of each are in the file
of its name. `launch` gives the jobs of a sweep to one of them. Only `experiments.sweep` imports
these.
"""
