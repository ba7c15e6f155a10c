"""One run in one folder: training, the files that it writes, and the checks before it starts."""
