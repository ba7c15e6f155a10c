"""Files: reading files from untrusted sources, and writing files that survive a crash.

Strict JSON, safe archives and paths, whole-file replacement, full disks, checksums, and trees of
arrays in one file. Nothing here depends on what the files are about.
"""
