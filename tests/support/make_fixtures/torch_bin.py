"""Writes tests/fixtures/torch_bin*: what torch.save writes, in both of its formats.

Needs torch:

    python tests/support/make_fixtures/torch_bin.py
"""

from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parents[2] / "fixtures"


def tensors():
    """Every type, views of one storage, a transposed tensor, a scalar, none, a parameter."""
    import torch

    generator = torch.Generator().manual_seed(0)
    table = torch.randn(6, 4, generator=generator)
    return {
        "double": torch.randn(2, 3, generator=generator, dtype=torch.float64),
        "float": table,
        "half": table.half(),
        "bfloat16": table.bfloat16(),
        "long": torch.arange(5),
        "bool": torch.tensor([True, False]),
        "rows": table[2:4],
        "column": table[:, 1],
        "transposed": table.T,
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(table[0]),
    }


def expected(content):
    """The same as numpy arrays, bfloat16 as its float32."""
    import torch

    return {
        name: (t.float() if t.dtype == torch.bfloat16 else t).detach().numpy()
        for name, t in content.items()
    }


def main():
    import torch

    content = tensors()
    torch.save(content, FIXTURES / "torch_bin.bin")
    torch.save(
        {"a": content["long"]},
        FIXTURES / "torch_bin_legacy.bin",
        _use_new_zipfile_serialization=False,
    )
    np.savez_compressed(FIXTURES / "torch_bin.npz", **expected(content))


if __name__ == "__main__":
    main()
