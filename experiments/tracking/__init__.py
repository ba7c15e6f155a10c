"""Copy a run's metrics to TensorBoard, Weights & Biases, Trackio, MLflow or a tracker of yours.

A run always writes `metrics.jsonl`. `--track=NAME` starts one child process for each tracker,
which reads that file while it grows. So a tracker that fails, hangs or is slow costs the run a
warning line, and the process that trains imports no tracker's library.

`track_flag` is the flag, `tracking` what a run uses, and `tracker_process` the child as the run
sees it. `child`, `followed_run`, `metrics_rows` and `find` run in the child, and `tracker` is what
a tracker implements: these import nothing of JAX. `trackers/` has one file for each tracker.
"""
