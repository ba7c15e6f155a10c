"""Finished runs in the formats of others.

`formats` has what `--as` takes; `base_and_head`, what an adapter needs beside it. `model_card`
describes the run in README.md, with scores from `card_scores`, and `hub` uploads the folder.
"""
