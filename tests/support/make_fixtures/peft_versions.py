"""Writes tests/fixtures/peft_versions/: folders that earlier versions of PEFT have written.

Once for each version, in an environment that has it in front of the newest:

    pip install --no-deps --target old/0.5.0 peft==0.5.0
    PYTHONPATH=old/0.5.0:tests python -m make_fixtures.peft_versions

`<version>/<case>/` is a folder of PEFT; `base.npz` has the weights and the input, and
`<version>/outputs.npz` what comes out.
"""

import numpy as np
from make_fixtures.peft_lora import FIXTURES

FOLDER = FIXTURES / "peft_versions"
SEED = 5
CASES = {
    "0.5.0": {
        "lora": {"peft_type": "LORA", "r": 2, "lora_alpha": 3},
        "ia3": {"peft_type": "IA3", "feedforward_modules": ["l2"]},
        "adalora": {"peft_type": "ADALORA", "init_r": 3, "target_r": 2, "lora_alpha": 4},
    },
    "0.10.0": {
        "dora": {"peft_type": "LORA", "r": 2, "use_dora": True},
        "loha": {"peft_type": "LOHA", "r": 2, "alpha": 3},
    },
    "0.15.2": {
        "rslora": {"peft_type": "LORA", "r": 2, "use_rslora": True, "rank_pattern": {"l2": 3}},
        "vera": {"peft_type": "VERA", "r": 4},
    },
}


def main():
    import peft
    import torch
    from make_fixtures.peft_lora import net, numpy_of, random_example

    folder, (ids, _) = FOLDER / peft.__version__, random_example(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    base, outputs = numpy_of(net(SEED).state_dict()), {}
    np.savez_compressed(FOLDER / "base.npz", ids=ids.astype(np.int32), **base)
    for number, (case, config) in enumerate(CASES[peft.__version__].items()):
        settings = {"target_modules": ["l1", "l2"], **config}
        model = peft.get_peft_model(net(SEED), peft.get_peft_config(settings)).double().eval()
        torch.manual_seed(number)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "ranknum" not in name:
                parameter.data += 0.3 * torch.randn(parameter.shape, dtype=torch.float64)
        model.save_pretrained(str(folder / case))
        (folder / case / "README.md").unlink(missing_ok=True)
        with torch.no_grad():
            outputs[case] = model(torch.tensor(ids)).numpy()
    np.savez_compressed(folder / "outputs.npz", **outputs)


if __name__ == "__main__":
    main()
