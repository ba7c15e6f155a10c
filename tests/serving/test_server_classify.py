"""Classification by adapters of an encoder, against its merged models."""

import dataclasses

import jax
import numpy as np
import pytest
import small_model
from starlette.testclient import TestClient

import lora_jax as lj
import variants
from experiments.serving import engines, run_server
from experiments.serving.adapter_folder import AdapterFolder
from experiments.serving.app import make_app
from experiments.serving.base_model import is_decoder, load_encoder, model_id
from experiments.serving.state import READY, Settings
from lora_jax.contract.toys import noisy
from lora_jax.interchange.names import names_of

LABELS = ("bad", "good")
TEXTS = ["a fine film", ["what a bore", "is it good?"], "so long that it needs " + "more " * 12]
EXAMPLE = (np.zeros((1, 8), np.int32),) * 3


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A client, and for each model the function of tokens, mask and types that it is."""
    root = tmp_path_factory.mktemp("classified")
    model = str(small_model.write(root / "bert"))
    assert not is_decoder(model)
    base = load_encoder(model, "float32", LABELS, "mean")
    alone = {"bert": lambda *x: base.serve(base.params, *x)}  # its files have a head
    for seed, (name, method, labels) in enumerate(
        [("one", "lora", 2), ("two", "dora", 2), ("wide", "lora", 3)]
    ):
        own = load_encoder(model, "float32", [str(i) for i in range(labels)], "mean")
        variant = variants.make(method, rank=2)
        adapted = lj.adapt(own.serve, variant, "query/kernel", also_train="classifier/.*")
        trainable, frozen = adapted.init(jax.random.key(seed), own.params, *EXAMPLE)
        trainable = noisy(trainable, seed, 0.5)
        folder, names = root / "adapters" / name, names_of(own.shape)
        lj.save_peft(folder, trainable, frozen, names)
        params = adapted.merge(trainable, frozen)
        alone[name] = lambda *x, own=own, params=params: own.serve(params, *x)
    settings = Settings(3, 9, 32, token="t" * 16, capacity=2, max_rank=4)
    where = AdapterFolder(root / "adapters")
    state = run_server.make_state("bert", where, settings, lambda: base)
    state.thread.start()
    state.thread.ready.result()
    state.status = READY
    with TestClient(make_app(state)) as client:
        yield client, alone, base.tokenizer.backend, state
    state.thread.stop()


def expected(alone, backend, text):
    """The probabilities of a text by itself, without padding."""
    encoding = backend.encode(*([text] if isinstance(text, str) else text))
    inputs = (encoding.ids, encoding.attention_mask, encoding.type_ids)
    logits = alone(*(np.asarray([x], np.int32) for x in inputs))[0]
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_each_text_is_classified_as_alone(served):
    client, alone, backend, _ = served
    for name in ("one", "two", "bert"):
        answer = client.post("/v1/classify", json={"model": name, "input": TEXTS})
        assert answer.status_code == 200 and answer.headers["X-Adapter-Digest"]
        for index, (each, text) in enumerate(zip(answer.json()["data"], TEXTS, strict=True)):
            wanted = expected(alone[name], backend, text)
            found = each["probabilities"]
            assert (each["index"], list(found)) == (index, list(LABELS))
            np.testing.assert_allclose(list(found.values()), wanted, atol=1e-5)
            assert each["label"] == LABELS[int(wanted.argmax())]
        tokens = sum(len(backend.encode(*([x] if isinstance(x, str) else x)).ids) for x in TEXTS)
        usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
        assert answer.json()["usage"] == usage
    single = client.post("/v1/classify", json={"model": "bert", "input": TEXTS[0]}).json()
    (one,) = single["data"]
    assert one["probabilities"] == pytest.approx(
        dict(zip(LABELS, expected(alone["bert"], backend, TEXTS[0]), strict=True)), abs=1e-5
    )


def test_an_encoder_has_the_dtype_and_reads_what_is_asked_for(tmp_path):
    """Its file has the head of a mean, which is none of a first token."""
    folder = str(small_model.write(tmp_path / "bert"))
    for dtype, pool in (("bfloat16", "mean"), ("float32", "cls")):
        base = load_encoder(folder, dtype, LABELS, pool)
        assert {x.dtype.name for x in jax.tree.leaves(base.params)} == {dtype}
        assert (base.pool, bool(base.fresh)) == (pool, pool == "cls")


def test_mistakes(served):
    token = {"headers": {"Authorization": f"Bearer {'t' * 16}"}}
    for path, sent, status, said in (
        ("classify", {"model": "one"}, 400, "'input' must be a text or a list"),
        ("classify", {"model": "one", "input": "a", "truncate": True}, 400, "'truncate' is unknow"),
        ("classify", {"model": "three", "input": "a"}, 404, "does not exist"),
        (
            "classify",
            {"model": "one", "input": ["a", "a " * 40]},
            422,
            "text 1 has 42 tokens; ther",
        ),
        ("classify", {"model": "wide", "input": "a"}, 503, "cannot be used"),
        ("classify", {"model": "one", "input": ["a"] * 13}, 422, "at most 12 may"),
        ("completions", {"model": "one", "prompt": "a"}, 404, "use /v1/classify"),
    ):
        answer = served[0].post(f"/v1/{path}", json=sent)
        assert answer.status_code == status and said in answer.json()["error"]["message"]
    answer = served[0].post("/admin/adapters/wide/load", **token)  # an admin is told what is wrong
    assert answer.status_code == 409 and "classifier" in answer.json()["error"]["message"]


def test_a_base_without_a_head_classifies_nothing(served, monkeypatch):
    client, *_, state = served
    drawn = dataclasses.replace(state.base, fresh=("classifier/kernel",))
    monkeypatch.setattr(state, "base", drawn)
    answer = client.post("/v1/classify", json={"model": "bert", "input": "a"})
    assert answer.status_code == 400
    assert "bert has no head of its own" in answer.json()["error"]["message"]


def test_what_clients_call_a_model(tmp_path, monkeypatch):
    """A link keeps its own name: in the Hub's cache, files are links to digests."""
    folder = tmp_path / "encoder.v2"
    folder.mkdir()
    (tmp_path / "small.gguf").symlink_to(tmp_path / "0123")
    monkeypatch.chdir(folder)
    assert {model_id(each) for each in (".", "./", "../encoder.v2", str(folder))} == {"encoder.v2"}
    assert model_id("..") == tmp_path.name and model_id("../small.gguf") == "small"
    assert [model_id(each) for each in ("smollm2", "org/model")] == ["smollm2", "org/model"]


def test_texts_are_counted_while_they_are_computed(monkeypatch):
    engine, seen = engines.Classifying(lanes=2, tokens=8), []

    def classified(bank, rows):
        seen.append((engine.active, engine.waiting))
        return np.full((len(rows), 2), 0.5)

    monkeypatch.setattr(engine, "_classified", classified)
    for _ in range(3):
        engine.submit(0, engines.Labelled((1,), (0,)))
    found = [*engine.step(None), *engine.step(None)]
    assert [number for number, *_ in found] == [0, 1, 2]  # who has waited longest comes first
    assert seen == [(2, 1), (1, 0)] and not engine.active
