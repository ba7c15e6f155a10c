"""Many runs from one command.

`sweep_flag` and `trials` make the trials, `preflight` checks them, and `grouping` finds those that
can share a program. `folder` knows all files of a sweep, and `view` shows its progress. Import
`jobs` to divide trials and to train them, and `folder` to read their states. `worker_process` is
for the processes that train them.
"""
