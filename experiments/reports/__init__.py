"""The report of a study.

`sheets` makes its tables, `warnings` its warnings and notes, and `plots` its pictures. `html_page`,
`csv_lines` and `file` write it. Only `experiments.report` imports these.
"""
