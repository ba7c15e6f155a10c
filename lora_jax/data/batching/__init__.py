"""Batches from token ids.

Import `batches`: a plan says which examples make up each step's batch, and to which length they are
padded. `packing` puts several documents into a row, and `branches` puts all options of a question
after their common prompt.
"""
