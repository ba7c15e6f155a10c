"""Make an experiment from a config, in three steps.

`config.parse` gives typed settings (`configs.settings`), `load.load` reads the task and the model,
and `experiment.build` makes everything that a run needs.

`processes` joins several processes, chooses the one that writes, and keeps them in step. `devices`
describes their devices, and makes a mesh of them.
"""
