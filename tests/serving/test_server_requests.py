"""What a server reads of requests, flags and names, and how tokens become text; none is started."""

import dataclasses
import hashlib
import json
import types
from concurrent.futures import Future
from unittest import mock

import commands
import jax
import pytest
import small_model
from fake_server import base, tokenizer
from hypothesis import given, settings, strategies as st
from small_language import write_model
from tokenizers import Tokenizer, decoders, models, processors

from experiments.runs.finished_run import ADAPTER
from experiments.serving import run_server
from experiments.serving.adapter_folder import AdapterFolder
from experiments.serving.base_model import load_language_model, most_tokens
from experiments.serving.errors import ApiError, refusal
from experiments.serving.request_schema import (
    IGNORED,
    NEUTRAL,
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    read,
)
from experiments.serving.texts import TextStream, texts_of
from lora_jax.data.tokenizing.chat_templates import ChatTemplate
from lora_jax.data.tokenizing.tokenize import Tokenizer as Tokens
from lora_jax.generation.choose_token import GREEDY, Sampling
from lora_jax.serving.adapter_store import UnknownAdapterError

USUAL = {
    CompletionRequest: {"model": "m", "prompt": "a"},
    ChatRequest: {"model": "m", "messages": [{"role": "user", "content": "a"}]},
    ClassifyRequest: {"model": "m", "input": "a"},
}
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)  # no float holds it
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda each: (
        st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = (
    *("model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p"),
    *("top_k", "seed", "stop", "stop_token_ids", "ignore_eos", "stream", "stream_options", "role"),
    *("input", *NEUTRAL, *IGNORED),
)
OTHERS = (
    *("", ".", "..", "../outside", "one/../one", "/etc", "one/", "..\\outside", "\u2024\u2024/o"),
    *(".hidden", "a file", "ONE", "o\0e", "x" * 200, "ä" * 128),
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(FIELDS), PLAIN, max_size=4), st.sampled_from([*USUAL]))
def test_any_object_is_read_or_refused_by_name(changes, kind):
    content = {**USUAL[kind], **changes}
    try:
        asked = read(kind, content)
    except ApiError as error:
        assert error.status == 400
        assert (
            error.param.partition(".")[0].partition("[")[0] in content.keys() | USUAL[kind].keys()
        )
        assert error.message.startswith(f"'{error.param}") and "\n" not in error.message
    else:
        assert asked.model
        if kind is not ClassifyRequest:
            assert 0 <= asked.temperature <= 2 and 0 < asked.top_p <= 1
            assert asked.limit is None or asked.limit >= 1


PICTURE = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]
USER = {"role": "user", "content": "a"}
WHOLE = "must be a whole number "
MODEL = (
    *(({"model": value}, "model", "is missing: the base or an adapter,") for value in (None, "")),
    ({"model": 5}, "model", "must be a text"),
    ({"tempratur": 1, "user": 1}, "tempratur", "is unknown; nearest: "),
)
GENERATION = (
    *MODEL,
    ({"temprature": 1}, "temprature", "is unknown; nearest: 'temperature'"),
    *(
        ({"temperature": value}, "temperature", "must be a number from 0 to 2")
        for value in (2.1, -1, "1", True, 10**400)
    ),
    ({"top_p": 1.01}, "top_p", "must be a number from 0 to 1"),
    ({"top_p": 0}, "top_p", "must be above 0; a temperature of 0 takes the likeliest token"),
    *(
        ({"max_tokens": value}, "max_tokens", f"{WHOLE}of 1 or more")
        for value in (0, 1.5, True, "1", -(10**30))
    ),
    ({"top_k": 2**31}, "top_k", f"{WHOLE}from 0 to 2147483647"),
    *(
        ({"seed": value}, "seed", f"{WHOLE}from {-(2**63)} to {2**63 - 1}")
        for value in (2**63, -(2**63) - 1, 2**70)
    ),
    *(
        ({"stop": value}, "stop", "must be a text or a list of at most 16, none empty")
        for value in ("", ["a", ""], ["a"] * 17, [1], {})
    ),
    *(
        (
            {"stop_token_ids": value},
            "stop_token_ids",
            f"must be a list of at most 64 whole numbers from 0 to {2**31 - 1}",
        )
        for value in (5, [-1], [0] * 65, [1.0], [2**31], [2**40])
    ),
    ({"ignore_eos": 1}, "ignore_eos", "must be true or false"),
    ({"stream_options": 5}, "stream_options", "must be an object"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "must be true or f"),
    ({"stream_options": {"usage": 1}}, "stream_options.usage", "is unknown; nearest: 'include_usa"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "is of streams: it needs 'st"),
    *(({"n": value}, "n", "is not supported; leave it out, or give 1") for value in (2, True)),
    *(
        ({"logprobs": value}, "logprobs", "is not supported; leave it out, or give false")
        for value in (0, 1)
    ),
    ({"tools": [{}]}, "tools", "is not supported; leave it out, or give []"),
    ({"tool_choice": "any"}, "tool_choice", 'is not supported; leave it out, or give "none" or "a'),
    ({"reasoning_effort": "low"}, "reasoning_effort", "is not supported; leave it out"),
)
COMPLETION = (
    *GENERATION,
    *(
        ({"prompt": value}, "prompt", "must be a text, a list of tokens, or a list of these")
        for value in (None, 5, [], [[]], [1, "a"], [True], [2**31], {"a": 1})
    ),
    ({"prompt": ["a"] * 65}, "prompt", "has 65 prompts; at most 64 are taken"),
)
CHAT = (
    *GENERATION,
    *(
        ({"messages": value}, "messages", "must be a list of messages, and not empty")
        for value in (None, [], {})
    ),
    *(
        ({"messages": [USER, value]}, f"messages[1]{field}", said)
        for value, field, said in (
            ("a", "", "must be an object"),
            ({**USER, "role": "me"}, ".role", "must be one of system, developer, user, assistant"),
            ({"role": "user"}, ".content", "must be a text, or a list of parts of type text"),
            ({**USER, "name": 1}, ".name", "must be a text"),
            ({**USER, "names": 1}, ".names", "is unknown; nearest: 'name'"),
            ({**USER, "tool_calls": [1]}, ".tool_calls", "is not supported; leave it out, or giv"),
        )
    ),
    (
        {"max_tokens": 1, "max_completion_tokens": 2},
        *("max_tokens", "and 'max_completion_tokens' differ: give one"),
    ),
)
CLASSIFY = (
    *MODEL,
    *(
        ({"input": value}, "input", "must be a text or a list of 1 to 64")
        for value in (1, ["a"] * 65)
    ),
    *(
        ({"input": [value]}, "input", "must have texts, or pairs of texts")
        for value in (1, ["a"], ["a"] * 3)
    ),
)
WRONG = {CompletionRequest: COMPLETION, ChatRequest: CHAT, ClassifyRequest: CLASSIFY}
"""Changes of a request, the field that is wrong then, and what is said of it."""


@pytest.mark.parametrize("kind", WRONG)
def test_mistakes_are_named(kind):
    codes = {"is unknown": "unknown_parameter", "is not supported": "unsupported_parameter"}
    for changes, param, said in WRONG[kind]:
        with pytest.raises(ApiError) as caught:
            read(kind, {**USUAL[kind], **changes})
        assert caught.value.message.startswith(f"'{param}' {said}")
        code = codes.get(said.partition(";")[0], "invalid_value")
        assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


def test_a_picture_is_refused_by_its_place():
    with pytest.raises(
        ApiError, match=r"'messages\[0\]\.content\[1\]' is of type 'image_url'; only"
    ):
        read(ChatRequest, {"model": "m", "messages": [{"role": "user", "content": PICTURE}]})


def test_every_field_acts_and_those_that_are_missing_are_as_at_openai():
    """What changes nothing is taken, and null counts as missing."""
    usual = {"temperature": 1, "top_p": 1, "top_k": 0, "seed": None, "stop": []}
    usual |= {"stop_token_ids": [], "ignore_eos": False, "stream": False, "limit": None}
    given = {"temperature": 0.3, "top_p": 0.6, "top_k": 5, "seed": 11, "stop": ["b", "a"]}
    given |= {"stop_token_ids": [9, 4], "ignore_eos": True, "stream": True}
    neutral = {name: values[0] for name, values in NEUTRAL.items() if values}
    nothing = {**neutral, **dict.fromkeys(IGNORED, "me"), "n": 1.0, **dict.fromkeys(usual)}
    nothing.pop("limit")
    for kind, tokens, limits in (
        (CompletionRequest, 16, ["max_tokens"]),
        (ChatRequest, None, ["max_tokens", "max_completion_tokens"]),
    ):
        for more in ({}, nothing):
            asked = read(kind, {**USUAL[kind], **more})
            assert {name: getattr(asked, name) for name in usual} == usual
            assert asked.usual_tokens == tokens and not asked.stream_options.include_usage
        for name in limits:
            options = {"stream_options": {"include_usage": True, "include_obfuscation": 1}}
            asked = read(kind, {**USUAL[kind], **given, **options, name: 7.0})
            assert {name: getattr(asked, name) for name in usual} == {**given, "limit": 7}
            assert asked.stream_options.include_usage
    assert read(CompletionRequest, {"model": "m", "prompt": ["x", [3, 1]]}).prompt == ["x", [3, 1]]
    assert read(CompletionRequest, {"model": "m", "prompt": [3, 1]}).prompt == [[3, 1]]
    assert read(CompletionRequest, {"model": "m", "prompt": "x", "stop": "b"}).stop == ["b"]
    assert read(ClassifyRequest, {"model": "m", "input": ["a", ["b", "c"]], "user": 1}).input == [
        *("a", ["b", "c"])
    ]


def test_messages_are_read_in_their_order_and_their_parts_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": parts, "name": "me"},
        {"role": "assistant", "content": "c", "tool_calls": [], "refusal": None},
    ]
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} {{ m.name }}|{% endfor %}"
    seen = []
    backend = types.SimpleNamespace(
        encode=lambda text, **_: seen.append(text) or types.SimpleNamespace(ids=[1])
    )
    chat = dataclasses.replace(base(), template=ChatTemplate(template))
    chat = dataclasses.replace(chat, tokenizer=types.SimpleNamespace(backend=backend, eos_id=0))
    texts_of(chat, read(ChatRequest, {"model": "m", "messages": messages}), 9)
    assert seen == ["system a |user ab me|assistant c |"]


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """The folder of a decoder that has been trained on 4096 tokens at most."""
    folder = tmp_path_factory.mktemp("language")
    write_model(folder, tokens=4096)
    return folder


def test_every_flag_has_its_own_effect(language, tmp_path):
    """Those of the server's limits, of what it holds, and of how its model is loaded."""

    def given(*line, **more):
        (tmp_path / "token").write_text("a" * 16)
        flags = [f"--{name}={value}" for name, value in more.items()]
        ended = commands.run("tests/support/server_flags.py", *line, *flags)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    numbers = {"lanes": 3, "queue": 5, "tokens": 33, "max_body": 777, "time_limit": 2.5}
    numbers |= {"drain_seconds": 1.5, "capacity": 6, "max_rank": 7}
    line = f"--model={language}", f"--adapters={tmp_path}"
    found = given(
        *line, f"--admin_token_file={tmp_path / 'token'}", host_megabytes=9, dtype="bfloat16",
        **numbers,
    )  # fmt: skip
    loads = ["load_language_model", str(language), "bfloat16"]
    others = {"name": language.name, "folder": str(tmp_path), "token": "a" * 16}
    assert found == {**numbers, **others, "host_bytes": 9 * 2**20, "load": loads}
    usual = given(*line)
    assert usual["tokens"] == 2048 and usual["load"][2] == "float32" and usual["token"] is None
    encoder = small_model.write(tmp_path / "bert")
    line = f"--model={encoder}", f"--adapters={tmp_path}", "--dtype=bfloat16"
    loads = ["load_encoder", str(encoder), "bfloat16", ["b", "a"]]
    assert given(*line, "--labels=b,a", "--pool=cls")["load"] == [*loads, "cls"]


def test_a_language_model_has_the_dtype_that_is_asked_for(language):
    assert most_tokens(str(language)) == 4096
    for dtype in ("float32", "bfloat16"):
        params = load_language_model(str(language), dtype).params
        assert {x.dtype.name for x in jax.tree.leaves(params)} == {dtype}


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 3), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_a_text_ends_at_the_first_token_with_which_there_is_a_stop_text(ids, stops):
    """Of two letters: stop texts lie in each other, and begin in what was held back."""
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "ba": 2, "abb": 3}, "a"))
    backend.decoder = decoders.Fuse()
    texts = [backend.decode(ids[:count]) for count in range(len(ids) + 1)]
    stopped = next((x for x in texts if any(stop in x for stop in stops)), None)
    wanted = texts[-1]
    if stopped is not None:
        wanted = stopped[: min(stopped.index(stop) for stop in stops if stop in stopped)]
    stream, found = TextStream(backend, stops), ""
    for token in ids:
        found += stream.add(token)
        assert wanted.startswith(found)
        if stream.stopped:
            break
    assert (found + stream.end(), stream.stopped) == (wanted, stopped is not None)


PIECES = ("<s>", "▁a", "▁b", "c", "▁", "<0xC3> <0xA9>", "<0xE2> <0x82> <0xAC>")
"""Tokens of whole characters, as SentencePiece has them; `<s>` is special."""


@pytest.fixture(scope="module")
def pieces():
    """The tokenizer, and the ids of each of `PIECES`."""
    tokens = " ".join(PIECES).split()
    found = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, "c"))
    found.add_special_tokens(["<s>"])
    undone = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    found.decoder = decoders.Sequence([*undone, decoders.Strip(" ", 1, 0)])
    return found, {each: [found.token_to_id(x) for x in each.split()] for each in PIECES}


class TestTextAfterAPrompt:
    """Of a tokenizer whose decoder drops the space at the beginning, as Llama's."""

    @settings(max_examples=100)
    @given(st.data())
    def test_it_is_what_follows_in_the_text_of_both(self, pieces, data):
        backend, ids_of = pieces
        some = st.lists(st.sampled_from(PIECES), max_size=9)
        begun = data.draw(st.just([]) | some.map(lambda each: ["▁a", *each[:2]]))
        prompt, ids = ([i for x in part for i in ids_of[x]] for part in (begun, data.draw(some)))
        stream = TextStream(backend, prompt=prompt)
        text = "".join(stream.add(token) for token in ids) + stream.end()
        assert backend.decode(prompt) + text == backend.decode(prompt + ids)

    def test_a_space_may_stop_it_and_a_part_of_a_character_in_the_prompt_is_left_there(
        self, pieces
    ):
        backend, ids_of = pieces
        stream = TextStream(backend, [" b"], ids_of["▁a"])
        assert stream.add(*ids_of["▁b"]) == "" and stream.stopped
        stream = TextStream(backend, prompt=ids_of["▁a"] + ids_of["<0xC3> <0xA9>"][:1])
        assert stream.add(*ids_of["c"]) == "c"


class TestTexts:
    """What is continued for a request, by a model of 10 tokens that ends texts with 7, 8 or 9."""

    BASE = dataclasses.replace(
        base(),
        shape=types.SimpleNamespace(vocab_size=10, eos_token_id=(7, 9)),
        tokenizer=Tokens(tokenizer().backend, 0, eos_id=8),
        template=ChatTemplate("{{ messages[0].content }}"),
    )

    def texts(self, **changes):
        chat = "messages" in changes
        content = {"model": "m", **({} if chat else {"prompt": "w1"}), **changes}
        return texts_of(self.BASE, read(ChatRequest if chat else CompletionRequest, content), 100)

    def test_every_token_that_ends_a_text_of_the_model_does(self):
        (text,) = self.texts(stop_token_ids=[3])
        assert text.stop_ids == (3, 7, 8, 9)
        (text,) = self.texts(stop_token_ids=[3], ignore_eos=True)
        assert text.stop_ids == (3,)

    def test_special_tokens_begin_a_prompt_and_a_template_writes_its_own(self):
        tokens = tokenizer()
        tokens.backend.post_processor = processors.TemplateProcessing("w5 $A", None, [("w5", 5)])
        template = "w3 {{ messages[0].content }}{% if add_generation_prompt %} w6{% endif %}"
        base = dataclasses.replace(
            self.BASE,
            tokenizer=Tokens(tokens.backend, 0),
            template=ChatTemplate(template),
        )
        text = read(CompletionRequest, {"model": "m", "prompt": ["w1 w2", [4, 2]]})
        content = {"model": "m", "messages": [{"role": "user", "content": "w1 w2"}]}
        found = [*texts_of(base, text, 9), *texts_of(base, read(ChatRequest, content), 9)]
        assert [each.prompt_ids for each in found] == [(5, 1, 2), (4, 2), (3, 1, 2, 6)]
        assert [each.max_new_tokens for each in found] == [6, 7, 5]

    def test_equal_prompts_differ_without_a_seed(self):
        drawn = self.texts(prompt=["w1"] * 8, temperature=1)
        assert len({text.sampling.seed for text in drawn}) > 1
        given = self.texts(prompt=["w1"] * 8, temperature=1, top_p=0.5, top_k=3, seed=2**31 + 5)
        assert {text.sampling for text in given} == {Sampling(1, 0.5, 3, 5)}
        assert {text.sampling for text in self.texts(prompt=["w1"] * 8, temperature=0)} == {GREEDY}

    @pytest.mark.parametrize(
        ("content", "said"),
        [("", "has no tokens; at least one is needed"), ("w10", "has token 10; the model has 10")],
    )
    def test_prompts_and_conversations_are_of_the_models_tokens(self, content, said):
        messages = [{"role": "user", "content": content}]
        for name, changes in (
            ("prompt", {"prompt": content}),
            ("messages", {"messages": messages}),
        ):
            with pytest.raises(ApiError, match=f"^'{name}' {said}$") as caught:
                self.texts(**changes)
            assert (caught.value.status, caught.value.param) == (400, name)


def test_what_cannot_be_used_is_named():
    """A broken folder is not a fault of the server's; its place, and faults, are not told."""
    logged = "; the server's log says why"
    for name, fault, status, said in (
        (None, OSError("secret"), 500, f"the base model cannot be used{logged}"),
        ("a", OSError("secret"), 503, f"the adapter 'a' cannot be used{logged}"),
        ("a", TypeError("secret"), 500, f"the adapter 'a' cannot be used{logged}"),
        (
            *("a", ValueError("'/b c/a':\n'd/e' of /b/c"), 503),
            "the adapter 'a' cannot be used: 'a': 'd/e' of c",
        ),
    ):
        error = refusal(name, fault)
        assert (error.status, error.message) == (status, said)


def test_a_device_without_room_is_not_a_fault_of_the_server():
    fault = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")
    error = refusal("a", fault)
    assert (error.status, error.code) == (503, "no_memory")
    other = refusal("a", jax.errors.JaxRuntimeError("INTERNAL: something else"))
    assert (other.status, other.code) == (500, "adapter_unusable")


def test_every_adapter_with_a_fault_is_named_and_the_server_starts(tmp_path, capsys):
    loads, store = {"good": Future(), "odd": Future()}, mock.Mock()
    for name in (*loads, "other", "wide"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ADAPTER).write_text("")
    loads["odd"].set_exception(TypeError("a scalar"))
    loads["good"].set_result("what was read")
    store.fetch = loads.__getitem__
    check = mock.Mock(side_effect=[None, ValueError("rank 64 is above --max_rank")])
    run_server.put_first(store, AdapterFolder(tmp_path), 2, check)
    store.acquire.assert_called_once_with("good", "what was read")
    assert [call.args for call in check.mock_calls] == [("other",), ("wide",)]
    odd, wide = capsys.readouterr().err.splitlines()
    assert "the adapter 'odd' cannot be used" in odd
    assert wide == "the adapter 'wide' cannot be used: rank 64 is above --max_rank"


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        outside = tmp_path / "outside"
        root = tmp_path / "root"
        for place in (outside, root / "one", root / ".hidden", root / "linked file"):
            place.mkdir(parents=True)
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                (place / name).write_text(f"{place.name} {name}")
        (root / "linked").symlink_to(outside)
        (root / "inside").symlink_to(root / "one")
        (root / "linked file/adapter_model.safetensors").unlink()
        (root / "linked file/adapter_model.safetensors").symlink_to(
            outside / "adapter_model.safetensors"
        )
        (root / "empty").mkdir()
        (root / "a file").write_text("")
        return AdapterFolder(root)

    def test_no_other_name_is_one_and_no_link_leads_out(self, folder):
        assert folder.names() == ["inside", "one"]
        for name in OTHERS:
            with pytest.raises(UnknownAdapterError):
                folder.files(name)
        for name in ("linked", "linked file"):
            with pytest.raises(ValueError, match="has a link that leads out of the folder"):
                folder.digest(name)

    def test_an_adapter_is_not_a_folder_of_adapters(self, folder):
        said = f"one is itself an adapter: .*, --adapters={folder.root}$"
        with pytest.raises(ValueError, match=said):
            AdapterFolder(folder.root / "one")

    def test_a_digest_is_that_of_the_files(self, folder):
        lines = ""
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            own = hashlib.sha256(f"one {name}".encode()).hexdigest()
            lines += f"{own}  {name}\n"
        assert folder.digest("one") == hashlib.sha256(lines.encode()).hexdigest()
