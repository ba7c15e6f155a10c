"""What comes and goes with the methods and files of adapters, in a server in this process."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
import small_language
from safetensors.numpy import load_file, save_file
from starlette.testclient import TestClient

import lora_jax as lj
import variants
from experiments.serving import run_server
from experiments.serving.adapter_folder import AdapterFolder
from experiments.serving.app import make_app
from experiments.serving.base_model import load_language_model
from experiments.serving.state import READY, Settings
from lora_jax.contract.toys import noisy
from lora_jax.generation.lanes import Programs
from lora_jax.interchange.names import names_of
from lora_jax.serving.bank_arrays import NoMemoryError

WEIGHTS = "adapter_model.safetensors"
FILLED = {"nan": np.nan, "vast": 1e30, "far": 5e18}
"""With what factors are filled; those of `far` have a product, but not with what is multiplied."""
MADE = (
    *(("lora", "lora", 2), ("other", "lora", 3), ("dora", "dora", 2), ("hira", "hira", 2)),
    *(
        ("loha", "loha", 2),
        ("high", "lora", 9),
        ("cut", "lora", 2),
        *((name, "lora", 2) for name in FILLED),
    ),
)
"""The names, methods and ranks of adapters; the first two are there when the server starts."""
TARGETS = "query/kernel", "down/kernel"
EXAMPLE = (np.zeros((1, 8), np.int32),) * 3


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A client of a server that begins with LoRA alone, its state, and the folder of adapters."""
    root = tmp_path_factory.mktemp("served")
    small_language.write_model(root / "model")
    base = load_language_model(str(root / "model"), "float32")
    for seed, (name, method, rank) in enumerate(MADE):
        adapted = lj.adapt(base.train, variants.make(method, rank=rank), TARGETS)
        trainable, frozen = adapted.init(jax.random.key(seed), base.params, *EXAMPLE)
        folder = root / ("adapters" if name in ("lora", "other") else "others") / name
        lj.save_peft(folder, noisy(trainable, seed, 0.5), frozen, names_of(base.shape))
    for name, value in FILLED.items():
        file = root / "others" / name / WEIGHTS
        filled = {n: np.full_like(x, value) for n, x in load_file(file).items()}
        save_file(filled, file, metadata={"format": "pt"})
    (root / "others/cut" / WEIGHTS).write_bytes(b"0" * 20)
    (root / "others/empty").mkdir()
    settings = Settings(2, 9, 32, token="t" * 16, capacity=2, max_rank=4, host_bytes=0)
    where = AdapterFolder(root / "adapters")
    state = run_server.make_state("model", where, settings, lambda: base)
    state.thread.start()
    state.thread.ready.result()
    state.status = READY
    shutil.copytree(root / "others", root / "adapters", dirs_exist_ok=True)
    with TestClient(make_app(state)) as client:
        yield client, state.thread.store, root / "adapters"
    state.thread.stop()
    state.thread.store.close()


def asked(client, model):
    content = {"model": model, "prompt": "the sky", "max_tokens": 4, "temperature": 0}
    return client.post("/v1/completions", json=content)


def admin(client, name, what):
    bearer = {"Authorization": f"Bearer {'t' * 16}"}
    return client.post(f"/admin/adapters/{name}/{what}", headers=bearer)


def held(store):
    """What programs are compiled for, and the bytes that are held in slots."""
    with store.using() as bank:
        return jax.tree.structure(bank), sum(x.nbytes for x in jax.tree.leaves(bank.held))


def held_methods(store):
    with store.using() as bank:
        return {type(each.variant).__name__.lower() for each in bank.held.methods}


def test_load_compiles_and_unload_leaves_what_was_before(served, compilations):
    """DoRA adds to plain LoRA a factor of its outputs, and HiRA a method of its own."""
    client, store, _ = served
    before, text = held(store), asked(client, "lora").json()["choices"]
    assert admin(client, "other", "unload").json()["unloaded"]
    assert held(store) == before
    for name in ("dora", "hira"):
        with compilations() as counted:
            assert admin(client, name, "load").status_code == 200
        assert counted and held(store)[1] > before[1]
        with compilations() as counted:
            for model in (name, "lora", "model"):
                assert asked(client, model).status_code == 200
            assert admin(client, name, "unload").json()["unloaded"]
            assert asked(client, "lora").json()["choices"] == text
        assert not counted and held(store) == before


def test_unload_of_what_was_evicted_leaves_what_was_before_it(served, compilations):
    client, store, _ = served
    assert admin(client, "other", "unload").status_code == 200
    assert asked(client, "lora").status_code == 200
    before = held(store)
    assert admin(client, "hira", "load").status_code == 200
    for name in ("lora", "other"):
        assert asked(client, name).status_code == 200
    assert "hira" not in store.held() and held(store)[1] > before[1]
    with compilations() as counted:
        assert admin(client, "hira", "unload").status_code == 200
        assert asked(client, "lora").status_code == 200
    assert not counted and held(store) == before


def test_reload_to_another_method_leaves_the_old_one_out(served):
    client, store, folder = served
    assert asked(client, "lora").status_code == 200
    for name in ("hira", "other"):
        shutil.copytree(folder / name, folder / "changed", dirs_exist_ok=True)
        assert admin(client, "changed", "reload").status_code == 200
        assert asked(client, "changed").status_code == 200
        assert ("hira" in held_methods(store)) == (name == "hira")
    shutil.rmtree(folder / "changed")
    assert admin(client, "changed", "unload").json() == {"name": "changed", "unloaded": True}


def test_reload_says_why_it_puts_nothing(served, monkeypatch):
    client, store, _ = served
    for name in ("hira", *store.held()):
        assert admin(client, name, "unload").status_code == 200

    def fail(*_):
        raise NoMemoryError("memory has no room for programs")

    monkeypatch.setattr(Programs, "compile", fail)
    for what in ("reload", "load"):
        answer = admin(client, "hira", what)
        said = answer.json()["error"]
        assert (answer.status_code, said["code"]) == (409, "adapter_unusable")
        assert said["message"] == "memory has no room for programs"


@pytest.mark.slow
def test_unload_is_done_even_if_the_programs_without_it_fail(served, monkeypatch):
    """Others go on with what there is; the memory is freed with the next unload."""
    client, store, _ = served
    for name in ("dora", "hira"):
        assert admin(client, name, "load").status_code == 200

    def fail(*_):
        raise RuntimeError("XLA has no room")

    with monkeypatch.context() as patched:
        patched.setattr(Programs, "compile", fail)
        answer = admin(client, "dora", "unload")
        assert (answer.status_code, answer.json()["unloaded"]) == (200, True)
        assert answer.json()["warning"].endswith("do not compile: RuntimeError: XLA has no room")
        assert "dora" not in store.held() and asked(client, "hira").status_code == 200
    before = held(store)[1]
    assert admin(client, "dora", "unload").json() == {"name": "dora", "unloaded": False}
    assert held(store)[1] < before
    answer = admin(client, "hirra", "unload")
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        404,
        "there is no adapter 'hirra'; nearest: 'hira', 'lora', 'loha'",
    )


def test_others_go_on_while_the_programs_of_a_request_are_compiled(
    served, monkeypatch, compilations
):
    client, store, _ = served
    for name in ("hira", *store.held()):
        assert admin(client, name, "unload").status_code == 200
    assert admin(client, "hira", "load").status_code == 200
    compile_all, begun, go = Programs.compile, threading.Event(), threading.Event()

    def held_up(*given):
        begun.set()
        assert go.wait(60)
        compile_all(*given)

    monkeypatch.setattr(Programs, "compile", held_up)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(asked, client, "loha")
        assert begun.wait(60)
        for name in ("model", "hira"):
            assert asked(client, name).status_code == 200
        assert not first.done()
        go.set()
        assert first.result(60).status_code == 200
    with compilations() as counted:
        for name in ("loha", "model"):
            assert asked(client, name).status_code == 200
    assert not counted
    assert admin(client, "loha", "unload").json()["unloaded"]


def test_what_was_evicted_comes_back_as_it_was_or_not_at_all(served):
    client, _, folder = served
    digest = asked(client, "lora").headers["X-Adapter-Digest"]
    weights = load_file(folder / "lora" / WEIGHTS)
    changed = {name: x + 1 for name, x in weights.items()}

    def evict():
        for name in ("other", "dora"):
            assert asked(client, name).status_code == 200

    evict()
    assert asked(client, "lora").headers["X-Adapter-Digest"] == digest
    evict()
    save_file(changed, folder / "lora" / WEIGHTS, metadata={"format": "pt"})
    said = "the files of 'lora' have changed since it was loaded: reload it"
    answer = asked(client, "lora")
    assert (answer.status_code, said in answer.text) == (503, True)
    answer = admin(client, "lora", "load")
    assert (answer.status_code, said in answer.text) == (409, True)
    answer = admin(client, "lora", "reload")
    assert answer.status_code == 200 and answer.json()["digest"] != digest
    evict()
    assert asked(client, "lora").headers["X-Adapter-Digest"] == answer.json()["digest"]
    evict()
    save_file(weights, folder / "lora" / WEIGHTS, metadata={"format": "pt"})
    assert admin(client, "lora", "unload").status_code == 200
    assert asked(client, "lora").status_code == 200


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("high", "has rank 9, and the bank max_rank=4: make it larger (of a server: --max_rank=9)"),
        ("nan", "holds NaN or an infinity"),
        ("vast", "the product of the adapter's A and B is not finite, as float32"),
        ("cut", f"cannot be used: {WEIGHTS} (20 bytes) is corrupt or truncated"),
        ("empty", "'empty' has neither adapter_config.json and"),
    ],
)
def test_a_broken_adapter_is_said_to_be_one(served, name, said):
    """To clients, too, but not where the server has it."""
    client, _, folder = served
    for answer, status in ((asked(client, name), 503), (admin(client, name, "load"), 409)):
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, "adapter_unusable")
        assert said.removeprefix("cannot be used: ") in answer.json()["error"]["message"]
    assert said in asked(client, name).text and str(folder) not in asked(client, name).text


def test_an_adapter_whose_outputs_are_not_numbers_is_named(served):
    client, _, _ = served
    assert admin(client, "far", "load").status_code == 200
    answer = asked(client, "far")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "adapter_unusable")
    assert "'far' cannot be used: its outputs are not numbers" in answer.text
    for name in ("lora", "model"):
        assert asked(client, name).status_code == 200
