"""Put a server together: what its thread loads before it answers."""

import functools
from collections.abc import Callable

from absl import logging

import lora_jax as lj
from experiments.serving.adapter_folder import AdapterFolder
from experiments.serving.adapter_loader import AdapterLoader
from experiments.serving.base_model import BaseModel
from experiments.serving.classifying import Classifying
from experiments.serving.engine import Engine
from experiments.serving.errors import one_line
from experiments.serving.generating import Generating
from experiments.serving.metrics import Metrics
from experiments.serving.model_thread import ModelThread
from experiments.serving.settings import Holding, Settings
from experiments.serving.state import State
from lora_jax.serving.adapter_store import AdapterStore


def make_state(
    name: str,
    folder: AdapterFolder,
    settings: Settings,
    holding: Holding,
    load: Callable[[], BaseModel],
) -> State:
    """A server that loads its model once its thread is started.

    Args:
      name: what clients call the base.
      load: loads the base.
    """
    metrics = Metrics()
    state = State(name, folder, settings, metrics)

    def make() -> tuple[AdapterStore, Engine, str]:
        state.base = base = load()
        bank = lj.Bank(base.serve, base.params, holding.capacity, holding.max_rank)
        loader = AdapterLoader(base, folder)
        store = AdapterStore(bank, loader, host_bytes=holding.host_bytes)
        _put_first(store, folder, holding.capacity)
        with store.using() as bank:
            engine = _engine(base, bank, settings)
            engine.warm(bank)
        return store, engine, base.digest

    state.thread = ModelThread(make, functools.partial(note, metrics))
    return state


def _engine(base: BaseModel, bank: lj.Bank, settings: Settings) -> Engine:
    if base.labels:
        return Classifying(settings.lanes, settings.tokens)
    return Generating(bank, settings.lanes, settings.tokens)


def _put_first(store: AdapterStore, folder: AdapterFolder, most: int) -> None:
    """Put the first adapters of a folder into slots: programs are compiled for what they are."""
    names = folder.names()[:most]
    loading = {name: store.fetch(name) for name in names}
    for name in names:
        try:
            store.acquire(name, loading.pop(name).result()).release()
        except Exception as error:  # of its files, which must not keep the server from starting
            logging.warning("the adapter '%s' cannot be used: %s", name, one_line(error))


def note(metrics: Metrics, thread: ModelThread, steps: int, failed: int) -> None:
    """Count what the thread of the model has done."""
    metrics.waiting.set(thread.waiting)
    metrics.active.set(thread.active)
    metrics.steps.inc(steps)
    metrics.failed_steps.inc(failed)
