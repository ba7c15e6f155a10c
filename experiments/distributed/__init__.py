"""Several processes and devices: joining processes, choosing who writes, meshes from flags."""
