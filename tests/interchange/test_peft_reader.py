"""One reader of many PEFT folders reads each as `load_peft` does, and shares what is the same."""

import shutil

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import stored_adapters as stored

import lora_jax as lj
import variants
from lora_jax.interchange import load_peft

NAMES = lj.names_from_patterns({"up/kernel": "up", "down/kernel": "down"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two of one structure, of another scale, of another rank, and with a weight in full."""
    root = tmp_path_factory.mktemp("folders")
    starts = [stored.begun(), stored.begun(), stored.begun(alpha=5.0), stored.begun(rank=3)]
    starts.append(stored.begun(also_train="down/kernel"))
    for number, start in enumerate(starts):
        lj.save_peft(root / str(number), *stored.numbered(start, number), NAMES)
    return [root / str(number) for number in range(len(starts))]


@pytest.mark.parametrize("quantize", [None, {"up/kernel": lj.Int8()}])
def test_each_folder_is_read_as_by_itself(folders, quantize):
    given = variants.from_peft, NAMES, stored.forward, stored.PARAMS, stored.X
    reader = lj.PeftReader(*given, quantize=quantize)
    read = [reader(folder) for folder in (*folders, folders[0])]
    for folder, each in zip((*folders, folders[0]), read, strict=True):
        alone = lj.load_peft(folder, *given, quantize=quantize)
        assert each.adapted == alone.adapted and each.config == alone.config
        chex.assert_trees_all_equal(each[1:3], alone[1:3])
    jax.tree.map(lambda one, other: one is other or pytest.fail(), read[0][2].base, read[1][2].base)


def test_a_reader_keeps_few_structures(tmp_path, monkeypatch):
    """Each has copies of what trains in full. The one not used for longest is traced again."""
    monkeypatch.setattr(load_peft, "MOST_BEGUN", 3)
    traced = []

    def forward(params, x):
        traced.append(None)
        return stored.forward(params, x)

    reader = lj.PeftReader(variants.from_peft, NAMES, forward, stored.PARAMS, stored.X)
    counts = []
    for rank in (1, 2, 3, 1, 4, 3, 1, 4, 2):
        if not (tmp_path / str(rank)).exists():
            lj.save_peft(tmp_path / str(rank), *stored.begun(rank=rank), NAMES)
        before = len(traced)
        reader(tmp_path / str(rank))
        counts.append(len(traced) > before)
    assert counts == [True, True, True, False, True, False, False, False, True]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda x: np.full_like(x, np.nan), "holds NaN or an infinity"),
        (lambda x: x[:1], "factors have 1 rows, and the config says r=2"),
    ],
)
def test_what_is_wrong_is_said_of_a_later_folder_too(made, said, folders, tmp_path):
    reader = lj.PeftReader(variants.from_peft, NAMES, stored.forward, stored.PARAMS, stored.X)
    reader(folders[0])
    shutil.copy(folders[0] / "adapter_config.json", tmp_path)
    tensors = load_file(folders[0] / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_A" in name)
    save_file({**tensors, name: made(tensors[name])}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=said):
        reader(tmp_path)
