"""How many training examples published data sets have, for plans without the data."""

SIZES = {
    # Wang et al. 2018, arXiv 1804.07461, Table 1, exactly as in the official files.
    "glue/cola": 8551,
    "glue/sst2": 67349,
    "glue/mrpc": 3668,
    "glue/qqp": 363846,
    "glue/stsb": 5749,
    "glue/mnli": 392702,
    "glue/ax": 392702,  # a run on AX trains on MNLI
    "glue/qnli": 104743,
    "glue/rte": 2490,
    "glue/wnli": 635,
    # Wang et al. 2019, arXiv 1905.00537, Table 1, exactly as in the official files.
    "super_glue/boolq": 9427,
    "super_glue/cb": 250,
    "super_glue/copa": 800,  # 400 questions, each with two choices
    "super_glue/wic": 5428,
    "super_glue/rte": 2490,
    # Novikova et al. 2017, arXiv 1706.09254: 42,061 texts to train on.
    "e2e": 42061,
    # Hu et al. 2023, arXiv 2304.01933: the file commonsense_170k.json.
    "commonsense_170k": 170420,
    # Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca: 52K instructions.
    "alpaca": 52002,
    # Yu et al. 2023, arXiv 2309.12284: 395K questions with answers.
    "metamath": 395000,
}


def examples(name: str, train: int = 0) -> int | None:
    """How many examples a run trains on; None if that is not known.

    Args:
      name: of the data, as configs name it.
      train: the number to which the config limits the examples; 0 for all.
    """
    known = SIZES.get(name)
    if known is None or not train:
        return train or known
    return min(train, known)
