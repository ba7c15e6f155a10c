"""Text generation with a decoder.

`generate` makes a text token by token, and `beam_search` looks for the most probable one; each is
one compiled program. Import `generate_text` for texts from texts: it tokenises the prompts, batches
them, and calls these two.

`scheduler` continues texts of many adapters side by side, which come and go between tokens
(continuous batching): `lanes` has its two programs, and `choose_token` the settings of each text.
"""
