"""The soak: what kills, damaged files, full disks and malformed input do to results.

inputs        a tiny model and tiny data, and the commands that work on them (`small_study` is one)
text_inputs   a tiny language model, and tiny questions
forked        commands in processes that are killed at a chosen moment, slow, or see another clock
results       what two runs of a command must have in common, bit by bit
kills         commands that are killed again and again
damage        flipped bits and cut files; `subjects` says which, `readers` how they are read
surroundings  full disks, read-only and slow folders, clocks that jump, two processes
not_finite    NaN and infinities in data, weights and the loss
malformed     what hypothesis makes of the files in `samples`, of flags and of patterns
parts         all of these, with their results in files (`result_file`)
"""
