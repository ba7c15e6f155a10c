"""Texts to token ids: tokenizers from published files, chat templates, prompts, and the cache."""
