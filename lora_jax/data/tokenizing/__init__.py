"""Token ids from texts: tokenizers from published files, chat templates, prompts, and a cache."""
