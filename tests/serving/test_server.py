"""The server with OpenAI's own client: every answer is the one of `generate` alone."""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import signal

import commands
import http_client
import jax
import jax.numpy as jnp
import numpy as np
import openai
import pytest
import small_language
import text_runs
from tokenizers import Tokenizer

import lora_jax as lj
import variants
from lora_jax.contract.toys import noisy
from lora_jax.generation.generate import generate
from lora_jax.interchange.names import names_of
from lora_jax.models.parts.completion import completion_likelihood
from lora_jax.models.parts.kv_cache import cached_step
from lora_jax.models.published.load import load_decoder

TARGETS = ["query/kernel", "down/kernel"]
PROMPTS = ("What colour has the sky", "the sea", "Answer1: red", "number 7?")
WIDTH, NEW = 16, 10
TOKEN = "a token of the tests"
EXAMPLE = (np.zeros((1, 8), np.int32),) * 3


@dataclasses.dataclass(frozen=True)
class Truth:
    """The parameters of each version by its digest, and what they say alone."""

    step: object
    backend: Tokenizer
    params: dict
    folders: dict

    def text(self, digest, prompt, ids=None, **sampled):
        """The text, how many tokens it has, and why it ends."""
        ids = self.backend.encode(prompt).ids if ids is None else ids
        row = np.zeros((1, WIDTH), np.int32)
        row[0, : len(ids)] = ids
        drawn = {"key": jax.random.key(sampled.pop("seed"))[None], **sampled} if sampled else {}
        out = generate(
            self.step,
            (self.params[digest],),
            jnp.asarray(row),
            jnp.asarray(np.arange(WIDTH) < len(ids))[None],
            max_new_tokens=NEW,
            eos_ids=0,
            pad_id=0,
            **drawn,
        )
        count = int(out.lengths[0])
        tokens = out.tokens[0, :count].tolist()
        finish = "stop" if tokens[-1] == 0 else "length"
        return self.backend.decode(tokens), count, finish


def digest_of(*files):
    lines = [f"{hashlib.sha256(each.read_bytes()).hexdigest()}  {each.name}\n" for each in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """A base, and the adapters `alice` of two versions, `bob` and `carol`."""
    root = tmp_path_factory.mktemp("served")
    small_language.write_model(root / "model")
    decoder = load_decoder(root / "model")
    forward, base = completion_likelihood(decoder, 1)
    step, _ = cached_step(decoder)
    weights = hashlib.sha256((root / "model/model.safetensors").read_bytes()).hexdigest()
    params, folders = {weights: base}, {"model": [weights]}
    made = (
        ("alice", "lora", {"rank": 3}),
        ("alice", "rslora", {"rank": 2}),
        ("bob", "lora", {"rank": 4}),
        ("carol", "dora", {"rank": 2}),
    )
    for seed, (name, method, settings) in enumerate(made):
        adapted = lj.adapt(forward, variants.make(method, **settings), TARGETS)
        trainable, frozen = adapted.init(jax.random.key(seed), base, *EXAMPLE)
        trainable = noisy(trainable, seed, 0.4)
        folder = root / "adapters/.versions" / f"{name}{seed}"
        if name == "bob":  # as a run leaves it
            lj.save_adapter(folder, trainable, frozen)
            config = text_runs.config(root, name=method).plain
            (folder / "config.json").write_text(json.dumps(config))
            digest = digest_of(folder / "config.json", folder / "adapter.safetensors")
        else:
            lj.save_peft(folder, trainable, frozen, names_of(decoder.config))
            files = "adapter_config.json", "adapter_model.safetensors"
            digest = digest_of(*(folder / file for file in files))
        params[digest] = adapted.merge(trainable, frozen)
        folders.setdefault(name, []).append(digest)
        if len(folders[name]) == 1:
            (root / "adapters" / name).symlink_to(folder)
    backend = Tokenizer.from_file(str(root / "model/tokenizer.json"))
    return root, Truth(step, backend, params, folders)


@pytest.fixture(scope="module")
def url(truth):
    root, _ = truth
    (root / "token").write_text(TOKEN.replace(" ", "_"))
    line = ["--lanes=3", "--queue=20", "--tokens=64", "--capacity=8", "--max_rank=4", "--port=0"]
    line += [f"--model={root / 'model'}", f"--adapters={root / 'adapters'}"]
    started = commands.Started("experiments.serve", *line, f"--admin_token_file={root / 'token'}")
    yield http_client.until_ready(started)
    started.send(signal.SIGTERM)
    ended = started.end()
    assert ended.returncode == 0, ended.stderr
    loading, serving, *_ = ended.stdout.splitlines()
    assert loading == "loading model with 3 adapters ..." and "for this machine alone" in serving
    assert "Traceback" not in ended.stderr


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as found:
        yield found


def completed(client, model, prompt, **settings):
    """The digest of an answer, and of its choice the text, tokens and finish."""
    usual = {"max_tokens": NEW, "temperature": 0}
    raw = client.completions.with_raw_response.create(
        model=model, prompt=prompt, **{**usual, **settings}
    )
    answer = raw.parse()
    assert answer.system_fingerprint == raw.headers["X-Adapter-Digest"]
    (choice,) = answer.choices
    text = choice.text, answer.usage.completion_tokens, choice.finish_reason
    return raw.headers["X-Adapter-Digest"], text


def test_models_are_listed(client, truth):
    found = {each.id: each.digest for each in client.models.list()}
    assert found == {name: digests[0] for name, digests in truth[1].folders.items()}
    assert list(found) == ["model", "alice", "bob", "carol"]


@pytest.mark.parametrize("model", ["model", "alice", "bob", "carol"])
def test_each_says_what_it_says_alone(client, truth, model):
    """Whole, and as a stream. Adapters differ, else no answer could be of the wrong one."""
    own, prompt = truth[1], PROMPTS[1]
    assert len({own.text(digest, prompt)[0] for digest in own.params}) == len(own.params) == 5
    for drawn in ({}, {"temperature": 0.9, "top_p": 0.8, "seed": 7}):
        digest, said = completed(client, model, prompt, **drawn)
        assert digest == own.folders[model][0] and said == own.text(digest, prompt, **drawn)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    given = {"max_tokens": NEW, **drawn, **options}
    *pieces, last = client.completions.create(model=model, prompt=prompt, **given)
    choices = [each.choices[0] for each in pieces]
    finish = "".join(each.finish_reason or "" for each in choices)
    text = "".join(each.text for each in choices)
    assert (text, last.usage.completion_tokens, finish) == said and not last.choices


def test_a_chat_is_what_its_template_makes_of_it(client, truth):
    messages = [{"role": "user", "content": "the sky"}, {"role": "assistant", "content": "blue"}]
    messages += [{"role": "user", "content": "the sun"}]
    rendered = "<user>the sky<end><assistant>blue<end><user>the sun<end><assistant>"
    ids = truth[1].backend.encode(rendered, add_special_tokens=False).ids
    given = {"model": "alice", "messages": messages, "temperature": 0}
    raw = client.chat.completions.with_raw_response.create(**given, max_completion_tokens=NEW)
    answer = raw.parse()
    text, count, finish = truth[1].text(raw.headers["X-Adapter-Digest"], "", ids)
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (text, finish)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), count)
    pieces = client.chat.completions.create(**given, max_tokens=NEW, stream=True)
    assert "".join(each.choices[0].delta.content or "" for each in pieces) == text


def test_mistakes_are_the_clients_errors(client):
    with pytest.raises(openai.NotFoundError, match="the model 'dave' does not exist"):
        client.completions.create(model="dave", prompt="a", max_tokens=1)
    long = [{"role": "user", "content": "a " * 100}]
    with pytest.raises(openai.UnprocessableEntityError, match="together there may be 64") as raised:
        client.chat.completions.create(model="alice", messages=long)
    assert raised.value.param == "messages"


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--adapters=nowhere", "--adapters=nowhere: no such folder"),
        ("--labels=a,b", "--labels goes with an encoder, and --model="),
        ("--pool=cls", "--pool would be ignored: --model="),
        ("--admin_token_file={root}/short", "short: expected a token of 16 or more printable"),
        ("--admin_token_file=nowhere", "--admin_token_file=nowhere: No such file"),
        ("--tokens=99999", "--tokens=99999: the model takes at most "),
        ("--adapters={root}", "'model' is the name of the base"),
        ("--model=minilm", "is an encoder: name the classes of its adapters"),
    ],
)
def test_mistakes_in_flags_end_it_with_one_line(truth, flag, said):
    root, _ = truth
    (root / "short").write_text("a token")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (root / "model" / name).touch()
    line = [f"--model={root / 'model'}", f"--adapters={root / 'adapters'}", "--port=0"]
    ended = commands.Started("experiments.serve", *line, flag.format(root=root)).end(60)
    assert ended.returncode == 1 and not ended.stdout
    (found,) = [each for each in ended.stderr.splitlines() if each.startswith("error: ")]
    assert said in found


def admin(url, name, what):
    bearer = {"Authorization": f"Bearer {TOKEN.replace(' ', '_')}"}
    return http_client.call(url, "POST", f"/admin/adapters/{name}/{what}", **bearer)


def replace(root, version):
    """Let `alice` be another version, in one step."""
    link = root / "adapters/.new"
    link.symlink_to(root / "adapters/.versions" / version)
    os.replace(link, root / "adapters/alice")


def test_answers_while_adapters_are_replaced(client, url, truth):
    """Each is of the version that it names, whatever else is computed."""
    root, own = truth
    asked = [
        (model, PROMPTS[number % len(PROMPTS)], number)
        for number in range(6)
        for model in ("alice", "model", "bob", "alice", "carol")
    ]

    def ask(each):
        model, prompt, number = each
        drawn = {"temperature": 0.8, "seed": number} if number % 2 else {}
        return each, drawn, completed(client, model, prompt, **drawn)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, each) for each in asked]
        for version in ("alice1", "alice0", "alice1"):
            replace(root, version)
            status, body, _ = admin(url, "alice", "reload")
            assert status == 200
            assert body["digest"] == own.folders["alice"][int(version[-1])]
            assert admin(url, "carol", "unload")[0] == 200
    seen = set()
    for each in answers:
        (model, prompt, _), drawn, (digest, text) = each.result()
        seen.add(digest)
        assert digest in own.folders[model]
        assert text == own.text(digest, prompt, **drawn), (model, prompt, drawn)
    assert seen >= {own.folders[name][0] for name in ("model", "bob", "carol")}
    assert completed(client, "alice", PROMPTS[0])[0] == own.folders["alice"][1]
    replace(root, "alice0")
    admin(url, "alice", "reload")


def test_adapters_come_and_go_by_name(url, truth):
    def names():
        found = http_client.call(url, "GET", "/v1/models")[1]["data"]
        return {each["id"]: each["digest"] for each in found}

    assert admin(url, "bob", "unload")[1] == {"name": "bob", "unloaded": True}
    assert names()["bob"] is None
    status, body, _ = admin(url, "bob", "load")
    assert status == 200 and body["digest"] == names()["bob"] == truth[1].folders["bob"][0]
    assert admin(url, "bob", "unload")[1]["unloaded"]
    assert not admin(url, "bob", "unload")[1]["unloaded"]
    for what in ("load", "reload", "unload"):
        assert admin(url, "dave", what)[0] == admin(url, "%C3%A4" * 128, what)[0] == 404
    broken = truth[0] / "adapters/broken"
    broken.mkdir()
    (broken / "adapter.safetensors").write_bytes(b"no adapter")
    status, body, _ = admin(url, "broken", "load")
    assert status == 409 and "is corrupt or truncated" in body["error"]["message"]
    held = [each for each in names().values() if each]
    assert http_client.counts(url)["resident_adapters"] == len(held) - 1  # the base is listed, too
