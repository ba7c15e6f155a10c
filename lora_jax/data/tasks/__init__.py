"""Tasks: examples or prompts, parts and metrics; and the tasks of GLUE as plain data."""
