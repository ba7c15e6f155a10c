"""Batches from token ids: padded lengths, plans, packed rows, and options that share a prompt."""
