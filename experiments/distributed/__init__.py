"""Several processes and devices in one run.

Import `processes` to join processes, to choose the one that writes, and to keep them in step.
`devices` describes their devices, and makes a mesh of them. Nothing here knows of configs.
"""
