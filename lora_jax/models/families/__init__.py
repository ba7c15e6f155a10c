"""The families of base models, each with its config: BERT, DeBERTa, GPT-2 and Llama.

`encoders` and `decoders` say which family a published `model_type` belongs to.
"""
