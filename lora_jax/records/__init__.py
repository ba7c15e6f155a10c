"""What a run writes about itself: `config.json`, `metrics.jsonl` and `record.json`, each sealed.

Import `run_record` for records, `metrics_log` for metrics by step.
"""
