"""The soak: what kills, damaged files, full disks and malformed input do to results.

inputs      a tiny model and tiny data, and the commands that work on them
forked      commands in processes that can be killed at a chosen moment
results     what two runs of a command must have in common, bit by bit
kills       commands that are killed again and again
damage      flipped bits and cut files
surroundings  full disks, read-only and slow folders, clocks that jump, two processes
not_finite  NaN and infinities in data, weights and the loss
malformed   what hypothesis makes of configs, patterns, data, tokenizers and weights
"""
