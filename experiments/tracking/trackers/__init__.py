"""The trackers, one file each; a file's name is the tracker's name, and nothing else lists them."""
