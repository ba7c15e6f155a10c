"""What to train, as plain data: one file for each table, study or example.

`settings` has every setting of a run, with its type and default. `common`, `common_tasks` and
`common_texts` have what several files share. Commands take a file as `--config=configs/NAME.py`.
Nothing here imports JAX or another package of this project.
"""
