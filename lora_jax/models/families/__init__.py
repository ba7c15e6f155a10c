"""The families of base models, each with its config: BERT, DeBERTa, GPT-2 and Llama.

`encoders` and `decoders` map a published `model_type` to its family.
"""
