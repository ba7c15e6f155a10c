"""Many adapters on one base: a bank of them, and batches whose rows use different ones.

`bank` holds the adapters, and `entries` makes of an adapter what it holds; `room` refuses what
memory has no room for. `adapter_store` loads adapters when they are asked for, more of them than a
bank has slots. In a program, a weight has the variant of `slots`, and `pick` multiplies each row by
the factors of its own adapter, in one of `ways`. `fastest_way` times these ways for each shape.
"""
