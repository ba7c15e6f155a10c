"""Tables of our scores beside the papers'.

`cells` has a table as numbers, and `formats` writes such a table in any format. Import
`config_tables` for the table of a config.
"""
