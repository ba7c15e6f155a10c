"""The server of many adapters on one base, `python -m experiments.serve`.

A request is read by `request_schema` and answered by `routes`. `texts` makes tokens of its texts,
which the one thread of `model_thread` computes: it alone has the adapters (`adapter_folder`) of the
base (`base_model`), and the engine (`engines`: for decoders and for encoders). `state` is what
requests share, `app` puts the routes together, and `run_server` starts and drains.
"""
