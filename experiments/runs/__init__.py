"""One run in one folder: training, what it writes, and what is checked before it starts."""
