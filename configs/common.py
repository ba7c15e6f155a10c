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


def variant(name: str, **settings: Any) -> ConfigDict:
    """A variant by its file's name; settings that stay unset keep the variant's own defaults."""
    unset = {
        "rank": config_dict.placeholder(int),
        "alpha": config_dict.placeholder(float),
        "scale": config_dict.placeholder(str),
        "initialization": config_dict.placeholder(str),
        "dropout": config_dict.placeholder(float),
    }
    return ConfigDict({**unset, "name": name, **settings})


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
