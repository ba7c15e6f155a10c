"""The parts of models: modules, attention, positions, the decoder's layers, cache and loss."""
