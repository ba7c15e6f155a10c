"""Adapter files: write them, read them, and check that they belong to a base.

Import `save_adapter`, `load_adapter` and `start_from` from `adapter_file`, `save_seen` and
`load_seen` from `adapter_file`.
"""
