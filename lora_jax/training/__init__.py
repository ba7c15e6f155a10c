"""Training: a step, the loop around it, optimisers, checkpoints, and many trials as one program.

`step` is pure; `trial_program` makes of it a program of one trial or of many; `loop` runs that, and
can be killed at any moment.
"""
