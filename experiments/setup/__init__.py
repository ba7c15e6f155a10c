"""Make an experiment from a config: read and check it, load the task and model, make the step.

`load` reads the task and the model. `experiment.build` makes everything that a run needs.
"""
