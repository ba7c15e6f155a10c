"""Small networks that adapters turn into others: how far low ranks reach (arXiv 2310.17513)."""
