"""Where tasks come from, one file a source; `load` and `load_text` are the way in."""
