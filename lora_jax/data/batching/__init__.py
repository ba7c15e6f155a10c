"""Token ids to batches: padded lengths, plans, packed rows, and options that share a prompt."""
