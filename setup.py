"""Packaging: the library and the variants install; experiments and configs run from here."""

from setuptools import find_packages, setup

# importlib_resources is needed by tensorflow-datasets, which does not say so.
TFDS = ["tensorflow-datasets>=4.9.10", "array-record>=0.8", "importlib_resources>=6.4"]
SPM = ["sentencepiece>=0.2", "protobuf>=4.25"]  # the tokenizer of DeBERTa
SLURM = ["submitit>=1.5"]
RAY = ["ray>=2.40"]
# What compiles for TPUs, here or not, in the version that JAX asks for (a proprietary binary of
# Google's, for Linux: https://cloud.google.com/terms/service-terms).
TPU = ["jax[tpu]>=0.10,!=0.10.2"]
SERVE = ["starlette>=1.0", "uvicorn>=0.40", "prometheus_client>=0.22"]
DECODERS = ["gguf>=0.17", "jinja2>=3.1.6", "sacrebleu>=2.5", "rouge-score>=0.1.2"]

setup(
    name="lora-jax",
    version="0.1.0",
    description="LoRA variants for any JAX function, one interface, honest experiments.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["lora_jax", "lora_jax.*", "variants", "variants.*"]),
    package_data={"lora_jax": ["py.typed"]},
    install_requires=[
        # 0.10.2 computes some sums and their gradients wrong on CPUs:
        # lora_jax/compiled/compiler_faults.py.
        "jax>=0.10,!=0.10.2",
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
            "jsonschema>=4.23",  # for manifests of Kubernetes
            *TFDS,
            *SPM,
            *SLURM,
            *DECODERS,
            *SERVE,
        ],
        "tfds": TFDS,
        "spm": SPM,
        "slurm": SLURM,
        "ray": RAY,
        "decoders": DECODERS,
        "serve": [*DECODERS, *SERVE],
        "tpu": TPU,
        "plots": ["matplotlib>=3.9"],
        "dev": ["ruff>=0.12", "basedpyright>=1.29"],
        "notebook": ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"],
    },
)
