r"""A server whose model is a counter: what it says needs no weights, and is known beforehand.

    python tests/support/fake_server.py FOLDER '{"lanes": 2, ...}'

Its texts are `w0 w1 w2 ...`, one word a step, and it takes `pause` seconds for each.
"""

import collections
import contextlib
import functools
import json
import sys
import threading
import time
import types
from concurrent.futures import Future
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from experiments.serving import run_server
from experiments.serving.adapter_folder import AdapterFolder
from experiments.serving.base_model import BaseModel
from experiments.serving.model_thread import ModelThread
from experiments.serving.state import Metrics, Settings, State
from lora_jax.data.tokenizing.tokenize import Tokenizer
from lora_jax.serving.adapter_store import UnknownAdapterError
from lora_jax.serving.bank_arrays import NoMemoryError
from lora_jax.serving.slot_table import NoSlotFree

WORDS = 1000
LATE = 0.2


def tokenizer():
    """`w0` to `w999`, each a token."""
    words = {f"w{i}": i for i in range(WORDS)}
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece("##", cleanup=False)
    return Tokenizer(backend, 0)


def base():
    shape = types.SimpleNamespace(vocab_size=WORDS, max_tokens=WORDS, eos_token_id=())
    return BaseModel("base digest", shape, tokenizer(), None, print, print, WORDS)


class FakeEngine:
    """Gives each row the tokens 0, 1, 2 ..., or those from the first of its prompt on, from 900 up.

    A row ends at its limit, or at the first of its tokens that ends it.

    A prompt with token 13 makes a step fail, and one with token 14 every step; after token 15 there
    are no numbers.
    """

    def __init__(self, lanes=2, pause=0.0):
        self.lanes, self.pause, self.next = lanes, pause, 0
        self.rows, self.spoilt = collections.OrderedDict(), []
        self.let_gone = 0

    def restart(self, bank):
        self.rows.clear()

    def let_go(self):
        self.let_gone += 1

    @property
    def active(self):
        return min(len(self.rows), self.lanes)

    @property
    def waiting(self):
        return len(self.rows) - self.active

    def submit(self, slot, row):
        self.rows[self.next] = [row, 0]
        self.next += 1
        return self.next - 1

    def cancel(self, number):
        self.rows.pop(number, None)

    def step(self, bank):
        time.sleep(self.pause)
        while self.spoilt:
            yield self.spoilt.pop(), None, "error"
        for number, each in list(self.rows.items())[: self.lanes]:
            row, count = each
            if 14 in row.prompt_ids:
                raise MemoryError("14 is far too much")
            if 13 in row.prompt_ids:
                self.spoilt.append(number)
                del self.rows[number]
                raise MemoryError("13 is too much")
            if 15 in row.prompt_ids:
                del self.rows[number]
                yield number, None, "error"
                continue
            each[1] += 1
            first = row.prompt_ids[0] if row.prompt_ids[0] >= 900 else 0
            stops = first + count in row.stop_ids
            finish = "stop" if stops else "length" if each[1] == row.max_new_tokens else None
            if finish is not None:
                del self.rows[number]
            yield number, first + count, finish


class FakeStore:
    """Has `one` and `two`, and `full` and `large`, for which there is no slot or memory ever.

    `slow` is loaded once `loading` is done, and is in memory for who has what that gives. `late`
    is found after `LATE` seconds.
    """

    def __init__(self, slots=2):
        self.slots = slots
        self.leased = collections.Counter()
        self.loading = Future()

    def close(self):
        print("the store is closed")

    def fetch(self, name):
        future = Future()
        if name == "late":
            threading.Timer(LATE, lambda: future.set_result(None)).start()
        elif name in ("one", "two", "full", "large", "slow"):
            future.set_result(None)
        elif name == "broken":
            future.set_exception(ValueError("/secret/place is damaged"))
        else:
            future.set_exception(UnknownAdapterError(name, ["one", "two"]))
        return future

    def acquire_or_load(self, name, loaded=None):
        self.fetch(name).result()
        if name == "slow" and loaded is None:
            return self.loading
        if name == "large":
            raise NoMemoryError("17 copies of what is new")
        others = [each for each, count in self.leased.items() if count and each != name]
        if name == "full" or len(others) >= self.slots:
            raise NoSlotFree
        self.leased[name] += 1
        release = lambda: self.leased.subtract([name])  # noqa: E731
        return types.SimpleNamespace(slot=1, digest=f"digest of {name}", name=name, release=release)

    compiling = False

    def using(self):
        return contextlib.nullcontext()

    filled = 2

    def held(self):
        return {name: f"digest of {name}" for name in ("one", "two")}


def make_state(folder, pause=0.0, start=0.0, **settings):
    metrics, found = Metrics(), Settings(**settings)
    state = State("counter", AdapterFolder(Path(folder)), found, metrics)

    def make():
        time.sleep(start)
        state.base = base()
        return FakeStore(), FakeEngine(found.lanes, pause), "base digest"

    state.thread = ModelThread(make, functools.partial(run_server.note, metrics))
    return state


if __name__ == "__main__":
    state = make_state(sys.argv[1], **json.loads(sys.argv[2]))
    listening = run_server.bind("127.0.0.1", 0)
    print(f"serving on {run_server.address(listening)}", flush=True)
    run_server.serve(state, listening)
