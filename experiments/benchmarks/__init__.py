"""Time one thing beside another: contenders in processes of their own, which take turns.

`suites` has a file for each value of `--suite` of the command `experiments.bench`: what is timed,
and which ratios are of interest. `contenders` has the process of one contender, and a file for each
thing that it can do. Here are the data of both (`cases`, `models`), the turns (`turns`), and what
becomes of the times: `results`, `tables` and `plot`.
"""
