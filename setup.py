"""Packaging: the library, the variants, and the commands with their configs.

`experiments` and `configs` lie inside of `lora_jax_experiments` where they are installed: there are
many packages of these two names. `lora_jax_experiments/__init__.py` says how they find each other.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# Without pictures and links to files, which a wheel does not have.
README = re.sub(r"!\[[^]]*\]\((?!https:)[^)]*\)\n*", "", (HERE / "README.md").read_text("utf-8"))
README = re.sub(r"\[([^]]*)\]\((?!https:)[^)]*\)", r"\1", README)
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "lora_jax/__init__.py").read_text(), re.M)

# The versions of JAX that this is tested with. 0.10.2 computes some sums and their gradients wrong
# on CPUs: lora_jax/compiled/compiler_faults.py.
JAX = ">=0.10,!=0.10.2"
# importlib_resources is needed by tensorflow-datasets, which does not say so.
TFDS = ["tensorflow-datasets>=4.9.10", "array-record>=0.8", "importlib_resources>=6.4"]
SPM = ["sentencepiece>=0.2", "protobuf>=4.25"]  # the tokenizer of DeBERTa
SLURM = ["submitit>=1.5"]
SEARCH = ["optuna>=5.0"]  # MIT
RAY = ["ray>=2.40"]
# What compiles for TPUs, here or not, in the version that JAX asks for (a proprietary binary of
# Google's, for Linux: https://cloud.google.com/terms/service-terms).
TPU = [f"jax[tpu]{JAX}"]
SERVE = ["starlette>=1.0", "uvicorn>=0.40", "pydantic>=2.11", "prometheus_client>=0.22"]
TENSORBOARD = ["tensorboard>=2.20"]
FRAMES = ["pandas>=2.2"]
DECODERS = ["gguf>=0.17", "jinja2>=3.1.6", "sacrebleu>=2.5", "rouge-score>=0.1.2"]

INNER = find_packages(include=["experiments", "experiments.*", "configs", "configs.*"])

setup(
    name="lora-jax",
    version=VERSION[1] if VERSION else None,
    description="LoRA variants for any JAX function, one interface, honest experiments.",
    long_description=README,
    long_description_content_type="text/markdown",
    author="The lora-jax authors",
    license="Apache-2.0",
    keywords=["jax", "flax", "lora", "adapters", "fine-tuning", "peft", "quantization"],
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["lora_jax", "lora_jax.*", "variants", "variants.*"]),
        "lora_jax_experiments",
        *(f"lora_jax_experiments.{name}" for name in INNER),
    ],
    package_dir={
        "lora_jax_experiments.experiments": "experiments",
        "lora_jax_experiments.configs": "configs",
    },
    package_data={
        "lora_jax": ["py.typed"],
        "variants": ["py.typed"],
        "lora_jax_experiments": ["py.typed"],
        "lora_jax_experiments.experiments": [
            *("analysis/*.csv", "approximation/*.csv", "results/bench/methods.json"),
        ],
    },
    entry_points={"console_scripts": ["lora-jax = lora_jax_experiments:main"]},
    install_requires=[
        f"jax{JAX}",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11",
        "numpy>=2.0",
        "absl-py>=2.1",
        "ml-collections>=1.0",
        "safetensors>=0.5",
        "tokenizers>=0.21",
        "huggingface_hub>=0.34",
        "rich>=13.9",
        "scipy>=1.14",
        "threadpoolctl>=3.2",
        "filelock>=3.12",  # JAX's compilation cache locks its files with it
        "PyYAML>=6.0",
    ],
    extras_require={
        "test": [
            "chex>=0.1.89",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.120",
            "equinox>=0.13",
            "scikit-learn>=1.6",
            "openai>=3.0",  # the client that the server is tested with
            *TFDS,
            *SPM,
            *SLURM,
            *SEARCH,
            *DECODERS,
            *SERVE,
            *TENSORBOARD,
            *FRAMES,
        ],
        "tfds": TFDS,
        "spm": SPM,
        "slurm": SLURM,
        "search": SEARCH,
        "ray": RAY,
        "decoders": DECODERS,
        "serve": [*DECODERS, *SERVE],
        "cuda12": [f"jax[cuda12]{JAX}"],
        "cuda13": [f"jax[cuda13]{JAX}"],
        "tpu": TPU,
        "tensorboard": TENSORBOARD,
        "wandb": ["wandb>=0.31"],
        "trackio": ["trackio>=0.43"],
        "mlflow": ["mlflow>=3.17"],
        "plots": ["matplotlib>=3.9"],
        "frames": FRAMES,
        "dev": ["ruff>=0.12", "basedpyright>=1.29"],
        "docs": [
            "sphinx>=9.0",
            "myst-parser>=5.0",
            "furo>=2025.9",
            "latex2mathml>=3.78",
            "sphinx-copybutton>=0.5.2",
        ],
        "notebook": ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"],
    },
)
