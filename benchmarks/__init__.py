"""Time one thing beside another: contenders in processes of their own, which take turns.

`__main__` is the command. `suites` says what is timed, and which ratios are of interest;
`contenders` has the process of one contender, and a file for each side. Here are the data of both
(`cases`, `models`), the turns (`turns`), and what becomes of the times
(`results`). It is a tool of this repository, and not part of the package.
"""
