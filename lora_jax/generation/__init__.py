"""Texts that a decoder writes: token by token (`generate`), by beam search, and from prompts."""
