"""From a config to an experiment: reading and checking it, the task, the model, the step.

`load` reads the task and the model; `experiment.build` makes everything that a run needs.
"""
