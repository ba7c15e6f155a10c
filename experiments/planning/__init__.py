"""Estimate the memory of a training step: by formula, and by compiling it for any devices."""
