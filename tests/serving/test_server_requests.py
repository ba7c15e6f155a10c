"""What a server reads of requests, flags and names, and how tokens become text; none is started."""

import dataclasses
import hashlib
import json
import types
from concurrent.futures import Future

import commands
import jax
import pytest
import small_model
from fake_server import base, tokenizer
from hypothesis import given, settings, strategies as st
from small_language import write_model
from tokenizers import Tokenizer, decoders, models, processors

from experiments.runs.finished_run import ADAPTER
from experiments.serving import assemble
from experiments.serving.adapter_folder import AdapterFolder
from experiments.serving.asked import IGNORED, NEUTRAL, Asked, read_chat, read_completion
from experiments.serving.base_model import load_language_model, most_tokens
from experiments.serving.errors import ApiError, refusal
from experiments.serving.text_stream import TextStream
from experiments.serving.texts import texts_of
from lora_jax.data.tokenizing.chat_templates import ChatTemplate
from lora_jax.data.tokenizing.tokenize import Tokenizer as Tokens
from lora_jax.generation.choose_token import GREEDY, Sampling
from lora_jax.serving.adapter_store import UnknownAdapterError

TEXT = {"model": "m", "prompt": "a"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
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
    *NEUTRAL,
    *IGNORED,
)
OTHERS = (
    *("", ".", "..", "../outside", "one/../one", "/etc", "one/", "..\\outside", "\u2024\u2024/o"),
    *(".hidden", "a file", "ONE", "o\0e", "x" * 200, "ä" * 128),
)


class TestRequests:
    @settings(max_examples=300)
    @given(st.dictionaries(st.sampled_from(FIELDS), PLAIN, max_size=4), st.booleans())
    def test_any_object_is_read_or_refused_by_name(self, changes, chat):
        read, usual = (read_chat, CHAT) if chat else (read_completion, TEXT)
        content = {**usual, **changes}
        try:
            asked = read(content)
        except ApiError as error:
            assert error.status == 400
            assert error.param.partition(".")[0].partition("[")[0] in {*content, "model", "prompt"}
            assert "\n" not in error.message
        else:
            assert 0 <= asked.temperature <= 2 and 0 < asked.top_p <= 1
            assert asked.max_tokens is None or asked.max_tokens >= 1
            assert all(isinstance(each, str | tuple) and each != () for each in asked.prompts)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("n", 2),
            ("logprobs", 0),
            ("tools", [{"type": "function"}]),
            ("response_format", {"type": "json_object"}),
            ("frequency_penalty", 0.5),
            ("logit_bias", {"5": 1}),
            ("reasoning_effort", "low"),
        ],
    )
    def test_what_is_not_supported_is_refused(self, name, value):
        with pytest.raises(ApiError, match=f"^'{name}' is not supported") as caught:
            read_chat({**CHAT, name: value})
        assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")

    def test_what_changes_nothing_is_taken(self):
        neutral = {name: values[0] for name, values in NEUTRAL.items() if values}
        assert read_chat({**CHAT, **neutral, "user": "me", "n": 1.0}).messages
        with pytest.raises(ApiError, match=r"^'n' is not supported"):
            read_chat({**CHAT, "n": True})

    def test_mistakes_are_named(self):
        def said(read, content):
            with pytest.raises(ApiError) as caught:
                read(content)
            return caught.value.message

        near = "'temprature' is unknown; nearest: 'temperature'"
        assert said(read_completion, {**TEXT, "temprature": 1}).startswith(near)
        parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]
        image = {**CHAT, "messages": [*CHAT["messages"], {"role": "user", "content": parts}]}
        assert said(read_chat, image) == (
            "'messages[1].content[1]' is of type 'image_url'; only text is read"
        )
        both = {**CHAT, "max_tokens": 1, "max_completion_tokens": 2}
        assert "differ: give one" in said(read_chat, both)
        assert "needs 'stream': true" in said(
            read_chat, {**CHAT, "stream_options": {"include_usage": True}}
        )
        assert said(read_completion, {"prompt": "a"}).startswith("'model' is missing")

    def test_every_field_acts_and_those_that_are_missing_are_as_at_openai(self):
        messages = [
            {"role": "system", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}], "name": "me"},
            {"role": "assistant", "content": "c"},
        ]
        given = {"temperature": 0.3, "top_p": 0.6, "top_k": 5, "seed": 11, "stop": ["b", "a"]}
        given |= {"stop_token_ids": [9, 4], "ignore_eos": True, "stream": True}
        options = {"stream_options": {"include_usage": True}}
        usual = Asked(
            **{"model": "m", "prompts": (), "messages": (), "max_tokens": None},
            **{"usual_tokens": None, "temperature": 1, "top_p": 1, "top_k": 0, "seed": None},
            **{"stop": (), "stop_token_ids": (), "ignore_eos": False, "stream": False},
            include_usage=False,
        )
        read = {"stop": ("b", "a"), "stop_token_ids": (9, 4), "include_usage": True}
        text = dataclasses.replace(usual, prompts=("x", (3, 1)), usual_tokens=16)
        parts = ({**messages[1], "content": "b"},)
        chat = dataclasses.replace(usual, messages=(messages[0], *parts, messages[2]))
        asked_text = {"model": "m", "prompt": ["x", [3, 1]]}
        asked_chat = {"model": "m", "messages": messages}
        for reads, content, wanted, limits in (
            (read_completion, asked_text, text, ["max_tokens"]),
            (read_chat, asked_chat, chat, ["max_tokens", "max_completion_tokens"]),
        ):
            assert reads(content) == wanted
            for name in limits:
                every = reads({**content, **given, **options, name: 7})
                assert every == dataclasses.replace(wanted, **{**given, **read}, max_tokens=7)

    def test_parts_of_text_are_joined(self):
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        asked = read_chat({"model": "m", "messages": [{"role": "user", "content": parts}]})
        assert asked.messages == ({"role": "user", "content": "ab"},)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """The folder of a decoder that has been trained on 4096 tokens at most."""
    folder = tmp_path_factory.mktemp("language")
    write_model(folder, tokens=4096)
    return folder


@pytest.fixture(scope="module")
def backend(language):
    """Bytes, and what is frequent: a character may be in several tokens."""
    return Tokenizer.from_file(str(language / "tokenizer.json"))


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


class TestText:
    @settings(max_examples=100)
    @given(st.data())
    def test_it_is_that_of_all_tokens(self, backend, data):
        ids = data.draw(st.lists(st.integers(3, backend.get_vocab_size() - 1), max_size=20))
        ids += backend.encode("ä € 𝄞").ids
        stops = data.draw(st.lists(st.text("ae ä", min_size=1, max_size=3), max_size=3))
        stream, found, pieces = TextStream(backend, stops), "", []
        for token in ids:
            pieces.append(stream.add(token))
            found += pieces[-1]
            assert not any(stop in found for stop in stops)
            if stream.stopped:
                break
        found += stream.end()
        whole = backend.decode(ids)
        places = [whole.index(stop) for stop in stops if stop in whole]
        assert found == whole[: min(places, default=len(whole))]
        assert stream.stopped == bool(places)

    @settings(max_examples=200)
    @given(
        st.lists(st.integers(0, 3), max_size=8),
        st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    )
    def test_it_ends_at_the_first_token_with_which_there_is_a_stop_text(self, ids, stops):
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

    def test_a_stop_text_over_tokens_is_held_back(self):
        stream = TextStream(tokenizer().backend, ["1 w2 w", "w7"])
        assert [stream.add(token) for token in (0, 1, 2, 4)] == ["w0", " w", "", ""]
        assert stream.stopped and stream.end() == ""
        stream = TextStream(tokenizer().backend, ["1 w2 w9"])
        assert [stream.add(token) for token in (1, 2, 4)] == ["w", "", "1 w2 w4"]


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

    def test_a_stop_text_may_begin_with_the_space(self, pieces):
        backend, ids_of = pieces
        stream = TextStream(backend, [" b"], ids_of["▁a"])
        assert stream.add(*ids_of["▁b"]) == "" and stream.stopped

    def test_a_part_of_a_character_in_the_prompt_is_left_there(self, pieces):
        backend, ids_of = pieces
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
        return texts_of(self.BASE, (read_chat if chat else read_completion)(content), 100)

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
        text = {"model": "m", "prompt": ["w1 w2", [4, 2]]}
        chat = {"model": "m", "messages": [{"role": "user", "content": "w1 w2"}]}
        found = [*texts_of(base, read_completion(text), 9), *texts_of(base, read_chat(chat), 9)]
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


@pytest.mark.parametrize(("name", "what"), [(None, "the base model"), ("a", "the adapter 'a'")])
def test_what_cannot_be_used_is_named(name, what):
    error = refusal(name, OSError("secret"))
    assert (error.status, error.message) == (
        500,
        f"{what} cannot be used; the server's log says why",
    )


def test_an_adapter_with_any_fault_does_not_keep_the_server_from_starting(tmp_path):
    for name in ("odd", "good"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ADAPTER).write_text("")
    used = []

    def fetch(name):
        found = Future()
        found.set_exception(TypeError("a scalar")) if name == "odd" else found.set_result(name)
        return found

    def acquire(name, loaded):
        used.append((name, loaded))
        return types.SimpleNamespace(release=lambda: None)

    store = types.SimpleNamespace(fetch=fetch, acquire=acquire)
    assemble._put_first(store, AdapterFolder(tmp_path), 2)
    assert used == [("good", "good")]


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

    def test_its_names(self, folder):
        assert folder.names() == ["inside", "one"]

    @pytest.mark.parametrize("name", OTHERS)
    def test_no_other_name_is_one(self, folder, name):
        with pytest.raises(UnknownAdapterError):
            folder.files(name)

    @pytest.mark.parametrize("name", ["linked", "linked file"])
    def test_no_link_leads_out(self, folder, name):
        with pytest.raises(ValueError, match="has a link that leads out of the folder"):
            folder.digest(name)

    def test_a_digest_is_that_of_the_files(self, folder):
        lines = ""
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            own = hashlib.sha256(f"one {name}".encode()).hexdigest()
            lines += f"{own}  {name}\n"
        assert folder.digest("one") == hashlib.sha256(lines.encode()).hexdigest()
