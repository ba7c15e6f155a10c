"""A package with a tracker, as a user may have one."""
