"""How jobs are started: on this machine, by Slurm, or as printed commands."""
