"""Runs combined into one: open finished runs of one base, and write what they make like a run.

Import `trained_runs` and `combined_run`; `lora_jax.arithmetic` computes.
"""
