"""Adapters in files: written, read, and held against the base that they belong to.

Import `save_adapter`, `load_adapter` and `start_from` from `adapter_file`.
"""
