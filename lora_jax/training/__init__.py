"""Training: a step, the loop around it, optimisers, checkpoints, and many trials as one program.

`step` is a pure function. `trial_program` makes it a program of one trial or of many. `loop` runs
that program; it can be killed at any moment.
"""
