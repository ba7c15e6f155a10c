"""Sources of tasks, one file for each source; the entry points are `load` and `load_text`."""
