"""Frozen weights in fewer bits: NF4 and int8.

`quantize` has the storages (`lj.NF4`, `lj.Int8`) and the product by a stored weight; `nf4` has the
codes, element by element.
"""
