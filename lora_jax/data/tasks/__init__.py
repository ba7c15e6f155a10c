"""What a task is: examples or prompts, its parts, its metrics, and GLUE's tasks as plain data."""
