"""Where text-to-text tasks come from, one file a source."""
