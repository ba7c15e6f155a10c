"""The report of a study.

`document` puts it together. `findings` holds what was found about each method, and `verdict` says
it in a sentence; `sheets` and `gain_sheet` make the tables, `warnings` the warnings and notes,
`pictures` and `plots` the pictures, `origin` says where all comes from, and `folders` links to the
runs. `html_page` (with `page_style`), `csv_lines` and `file` write it. Only
`experiments.report` imports these.
"""
