"""Token ids from texts, with the tokenizers of published checkpoints.

Import `tokenize` for texts with labels and for the cache of ids, `encode_prompts` for prompts with
completions, and `chat_templates` for conversations. The other files build tokenizers from published
files.
"""
