"""Files: reading what somebody else wrote, and writing what must survive.

Strict JSON, archives and paths that cannot lead astray, whole-file replacement, full disks,
checksums, and trees of arrays in one file. Nothing here knows what the files are about.
"""
