"""Studies that are registered before they run.

`protocol` says what a study compares, how it decides and which learning rates it tries,
`registration` writes that into the study's folder before the first run and asks git's history for
it, and `training` trains what is registered. `adherence` compares the runs of a folder with what
was registered, and `untrained` scores models before any training.
"""
