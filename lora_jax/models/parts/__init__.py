"""What models are built of: modules, attention, positions, the decoder's layers, cache and loss."""
