"""Training: a step, the loop around it, optimisers, checkpoints, and many trials as one program.

`step` is pure; `loop` runs it, and can be killed at any moment; `trial_program` and `fit_trials` do
the same for trials that share a program.
"""
