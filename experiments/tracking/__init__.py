"""Copy a run's metrics to TensorBoard, Weights & Biases, Trackio, MLflow or a tracker of yours.

A run always writes `metrics.jsonl`. `--track=NAME` starts one child process for each tracker,
which reads that file while it grows. So a tracker that fails, hangs or is slow costs the run a
warning line, and the process that trains imports no tracker's library.

`track_flag` is the flag, and `tracking` what a run uses. `child` is the process of a tracker;
`tracker` is what a tracker implements, and `trackers` has those of the project. These three import
nothing of JAX.
"""
