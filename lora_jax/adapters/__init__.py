"""Adapter files: write them, read them, and check that they belong to a base.

`adapter_file` has `save_adapter`, `load_adapter`, `start_from`, `save_seen` and `load_seen`;
`base_digest` tells bases apart.
"""
