"""What configs share: sections with typed defaults, and the reading of a config's argument."""

from typing import Any

from ml_collections import ConfigDict, config_dict


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
    """The part after the colon of `--config=FILE:key=value,...`, with the types of the defaults.

    Raises:
      ValueError: an unknown key (the known ones are listed) or a value of another type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, equals, text = item.partition("=")
        if key not in defaults or not equals:
            raise ValueError(f"config argument '{item}': expected one of {', '.join(defaults)}=...")
        values[key] = type(defaults[key])(text)
    return values


SETTINGS = {
    # every A/B method
    "rank": int,
    "alpha": float,
    "scale": str,
    "initialization": str,
    "dropout": float,
    "learning_rate_ratio": float,
    # one method each
    "detach_norm": bool,  # dora
    "target_rank": int,  # adalora, from here
    "total_steps": int,  # unset: those of the run
    "t_init": int,
    "t_final": int,
    "delta_t": int,
    "beta1": float,
    "beta2": float,
    "orthogonality": float,
    "mode": str,
    "d_init": float,  # vera
    "scales": str,  # ia3
    "only_targets": bool,  # full
    "pattern": str,  # bitfit
}
"""The settings that variants have, so that they can be given on the command line."""


def variant(name: str, **settings: Any) -> ConfigDict:
    """A variant by its file's name; settings that stay unset keep the variant's own defaults."""
    unset = {key: config_dict.placeholder(kind) for key, kind in SETTINGS.items()}
    return ConfigDict({**unset, "name": name, **settings})


def quantize(storage: str = "none", patterns: tuple[str, ...] = ("all-linear",)) -> ConfigDict:
    """How frozen weights are stored: `none`, `nf4`, `nf4_double` (its scales too) or `int8`."""
    return ConfigDict({"storage": storage, "patterns": patterns})


def optimizer(learning_rate: float, **settings: Any) -> ConfigDict:
    """AdamW with a warm-up that is a ratio of all steps."""
    defaults = {
        "schedule": "linear",
        "warmup_ratio": 0.06,
        "weight_decay": 0.01,
        "clip": 1.0,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
    }
    return ConfigDict({**defaults, "learning_rate": learning_rate, **settings})
