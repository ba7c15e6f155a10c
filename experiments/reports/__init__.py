"""The report of a study.

`document` puts it together and writes its file. `findings` holds what was found about each method
and says it in a sentence, and `registered` finds it for a registered study, with the outcomes of
its `claims`. `sheets` makes the tables, `warnings` the warnings and notes, `plots` the pictures.
`html_page` and `csv_lines` write the page and the CSV. `study_blocks` fills the project's
documents, with the claims of papers (`paper_claims`).
"""
