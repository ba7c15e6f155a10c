"""Functions that nobody prepared for adapters, by the library that they are written with."""
