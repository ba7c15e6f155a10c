"""Runs combined into one: open finished runs of one base, and make the run that they come to.

Import `trained_runs` and `combined_run`; `lora_jax.arithmetic` computes.
"""
