"""What a contender does: `process` is its process, and each other file has a function `make`.

`make(case)` gives a `Made`: a function that does the work once, and facts that need no clock. Files
that need torch, transformers, PEFT or Qwix import them inside functions.
"""
