"""Text generation with a decoder: token by token (`generate`), by beam search, from texts."""
