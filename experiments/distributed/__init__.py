"""Several processes and devices: how processes meet, who writes, and meshes from flags."""
