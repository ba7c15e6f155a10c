"""What a training step will take: memory by formula, and by compiling for any devices."""
