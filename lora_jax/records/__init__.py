"""The files that a run writes about itself: `config.json`, `metrics.jsonl` and `record.json`.

The lines of `metrics.jsonl` have checks, and `record.json` has a seal.

Import `run_record` for records, `metrics_log` for metrics by step.
"""
