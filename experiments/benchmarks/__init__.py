"""Time one thing beside another: contenders in processes of their own, which take turns.

`turns` starts and times them, `contender` is the process of one side, and `our_step` and
`peft_step` make its training step. The command `experiments.bench` imports `turns` and `cases`.
"""
