"""What methods and settings there are, for the commands `experiments.methods` and `settings`.

`catalogue` has all about each method; what it can do comes from `abilities`, which traces its code.
`methods_tables` and `settings_table` write the tables.
"""
