"""Many adapters on one base: a bank of them, and batches whose rows use different ones.

`bank` holds the adapters in the arrays of `bank_arrays`, which refuses what memory has no room for,
and `entries` makes of an adapter what it holds. `adapter_store` loads adapters when they are asked
for, more of them than a bank has slots. In a program, a weight has the variant of `slots`, and
`grouped_matmul` multiplies each row by the factors of its own adapter, in the fastest of several
ways. `joint_training` says what trains in a bank.
"""
