"""`python -m lora_jax_experiments COMMAND`, with which commands start others."""

from lora_jax_experiments import main

if __name__ == "__main__":
    main()
