"""Figures of many runs.

`scores` draws scores by parameters, scores by learning rate, and training curves. `forest`,
`labelled_points` and `small_multiples` draw the figures of reports from plain numbers.
`adapter_distance` draws how far adapters are apart. Colours and lines are those of `style`, and
`files` writes figures.
"""
