"""Finished runs in the formats of others: open a run, find a format, and write it.

Each file of `formats/` is a format. `model_card` describes the run beside it, with scores from
`card_scores`, and `hub` uploads the folder.
"""
