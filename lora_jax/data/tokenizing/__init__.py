"""Token ids from texts, with the tokenizers of published checkpoints.

Import `tokenize` for texts with labels, `encode_prompts` for prompts with completions, and
`chat_templates` for conversations. `cache` keeps the ids between runs. The other files build
tokenizers from published files.
"""
