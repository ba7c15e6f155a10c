"""The server of many adapters on one base, `python -m experiments.serve`.

A request is read by `fields` and `asked`, answered by `routes` in the shapes of `answers`, and
computed by the one thread of `model_thread`, which alone has the adapters (`adapter_folder`,
`adapter_loader`) and the `engine` (`generating` for decoders, `classifying` for encoders). `app`
puts the routes together, `run_server` starts and drains, and `load` is a client for measurements.
"""
