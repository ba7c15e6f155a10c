"""Studies that are registered before they run.

`protocol` says what a study compares and how it decides, `registration` writes that into the
study's folder before the first run, `rates` has the rule for learning rates, and `training` trains
what is registered. `adherence` compares the runs of a folder with what was registered.
"""
