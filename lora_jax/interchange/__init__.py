"""Adapters in other libraries' formats, written and read: Hugging Face PEFT's, microsoft/LoRA's.

`names` knows what a parameter is called in torch; a method's own file knows what its
factors are called (`Variant.to_peft`). `save_peft` and `load_peft` put the two together. A file of
microsoft/LoRA (`load_loralib`) is read as PEFT's LoRA of other names.
`save_plain_lora` is for servers, and for llama.cpp.
"""
