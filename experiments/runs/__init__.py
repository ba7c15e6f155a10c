"""Train a run, or several trials as one program, and write what each leaves in its folder.

Import `run` to train. The files behind it do one part each: `training` trains, `trial_records`,
`artifacts` and `predictions` write results, and `group_folder` keeps common checkpoints.
`audit_flag` is for all commands that train. `finished_run` opens what a run has left, and
`adapter_as_run` writes the same for an adapter that no training here made.
"""
