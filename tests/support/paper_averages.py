"""The averages over GLUE of different papers, which take different tasks or metrics.

Numbers of different averages must not be compared. For example, PiSSA's Table 3 repeats the rows of
AdaLoRA's Table 1, with means that are up to 0.2 higher.
"""

from collections.abc import Mapping

# The tasks of each average, and the metrics whose mean is the number of the task.
AVERAGES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    # Eight tasks. The caption says overall accuracy on MNLI, but the authors' own README shows that
    # the numbers are of the matched part.
    "lora_table2": {
        "glue/mnli": ("accuracy",),
        "glue/sst2": ("accuracy",),
        "glue/mrpc": ("accuracy",),
        "glue/cola": ("matthews",),
        "glue/qnli": ("accuracy",),
        "glue/qqp": ("accuracy",),
        "glue/rte": ("accuracy",),
        "glue/stsb": ("pearson",),
    },
    # Eight tasks, with both parts of MNLI and both metrics of QQP and of STS-B.
    "adalora_table1": {
        "glue/mnli": ("accuracy", "accuracy_mismatched"),
        "glue/sst2": ("accuracy",),
        "glue/cola": ("matthews",),
        "glue/qqp": ("accuracy", "f1"),
        "glue/qnli": ("accuracy",),
        "glue/rte": ("accuracy",),
        "glue/mrpc": ("accuracy",),
        "glue/stsb": ("pearson_spearman",),
    },
    # AdaLoRA's tasks with one number each for MNLI and QQP.
    "pissa_table3": {
        "glue/mnli": ("accuracy",),
        "glue/sst2": ("accuracy",),
        "glue/mrpc": ("accuracy",),
        "glue/cola": ("matthews",),
        "glue/qnli": ("accuracy",),
        "glue/qqp": ("accuracy",),
        "glue/rte": ("accuracy",),
        "glue/stsb": ("pearson_spearman",),
    },
    # LoRA's tasks without MNLI and QQP.
    "vera_table2": {
        "glue/sst2": ("accuracy",),
        "glue/mrpc": ("accuracy",),
        "glue/cola": ("matthews",),
        "glue/qnli": ("accuracy",),
        "glue/rte": ("accuracy",),
        "glue/stsb": ("pearson",),
    },
}
