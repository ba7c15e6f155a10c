"""Several processes and devices in one run.

Import `processes` to join processes, to choose the one that writes, and to keep them in step.
`flags` has the flags for that, and `mesh` makes a mesh from a flag. Nothing here knows of configs.
"""
