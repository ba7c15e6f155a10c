"""What a task is: examples or prompts, the parts to train and evaluate on, and the metrics.

Import `Task` for texts with labels, and `TextTask` for prompts with completions. `glue` holds the
tasks of GLUE and SuperGLUE as plain data, and `split` divides examples by a seed. Nothing here
reads a file or makes tokens.
"""
