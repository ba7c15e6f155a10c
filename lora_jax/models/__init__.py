"""The base models, one family a file, and the reading of their published checkpoints."""
