"""Which modules a config adapts, beside PEFT's own answer."""

import random

import pytest

from lora_jax.interchange.peft_config import refusal_of

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.parity

MODULES = [
    *(f"{stem}.{n}.{tail}" for stem in ("m.layers", "h") for n in (0, 1, 12) for tail in "qk"),
    *("m.layers.1.experts.0.q", "h.1", "q", "m.head", "z.q"),
]
FIELDS = {
    "target_modules": [
        *(["q"], ["q", "k"], ["h.1.q", "k"], ["head", "1"], ["layers.0.q"]),
        *(r".*\.q", r"m\.layers\.[01]\..*", "q", "m.head|z.q"),
    ],
    "exclude_modules": [None, ["q"], ["0.k", "m.head"], [], r".*1\.q", "q"],
    "layers_to_transform": [None, [], 0, 1, [0, 12], [1]],
    "layers_pattern": [None, [], "", "layers", ["h", "layers"], "experts", "l[ay]+ers"],
}


def test_as_peft_has_it():
    from peft.tuners.tuners_utils import check_target_module_exists

    draw, refused = random.Random(0), 0
    for _ in range(400):
        config = {name: draw.choice(values) for name, values in FIELDS.items()}
        if isinstance(config["target_modules"], str):  # PEFT knows no layers of an expression
            config |= {"layers_to_transform": None, "layers_pattern": None}
        if config["layers_to_transform"] in (None, []):
            config["layers_pattern"] = None
        theirs = peft.LoraConfig(**config)
        for module in MODULES:
            wanted = bool(check_target_module_exists(theirs, module))
            assert (refusal_of(config, module) is None) == wanted, (config, module)
            refused += not wanted
    assert 0 < refused < 400 * len(MODULES)
