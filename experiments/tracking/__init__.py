"""Copy a run's metrics to TensorBoard, Weights & Biases, Trackio, MLflow or a tracker of yours.

A run always writes `metrics.jsonl`. `--track=NAME` starts a thread for each tracker, which gets the
same lines. A tracker that fails, hangs or is slow costs the run a warning line.

`track_flag` is the flag, and `tracking` what a run uses. `tracker` is what a tracker implements,
and `trackers` has those of the project.
"""
