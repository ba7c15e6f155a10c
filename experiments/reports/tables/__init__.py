"""Tables of our scores beside the papers'.

`cells` has a table as numbers and writes it in any format. Import `config_tables` for the table of
a config. `table_cost` estimates what the runs of a table cost.
"""
