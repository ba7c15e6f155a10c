"""Chat templates: rendered as their authors mean them, found where they are published, refused."""

import datetime
import functools
import json
import sys

import pytest
from chat_templates import ANSWER, CONVERSATIONS, SYSTEM, TEMPLATES, USER, message
from one_line import refuses

pytest.importorskip("jinja2")
from lora_jax.data.examples import Prompts
from lora_jax.data.sources import as_chat
from lora_jax.data.task import TextTask
from lora_jax.data.tokenizing.chat_templates import (
    ChatTemplate,
    load_chat_template,
    prompt_and_completion,
)

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
HELLO = [message("user", "Hi"), message("assistant", "Hello!")]


def template(name, **tokens):
    return ChatTemplate(TEMPLATES[name], {**TOKENS, **tokens})


@pytest.mark.parametrize(
    ("name", "messages", "variables", "expected"),
    [
        (
            "chatml",
            HELLO,
            {},
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n",
        ),
        (
            "chatml",
            HELLO[:1],
            {"add_generation_prompt": True},
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("llama2", HELLO, {}, "<s>[INST] Hi [/INST] Hello! </s>"),
        (
            "llama2",
            [message("system", "Be kind."), *HELLO],
            {},
            "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello! </s>",
        ),
        (
            "llama3",
            HELLO,
            {"date_string": "1 Jan 2025"},
            "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 1 Jan 2025\n\n<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>",
        ),
        ("mistral", HELLO, {"bos_token": "<B>"}, "<B>[INST] Hi[/INST] Hello!</s>"),
        (
            "qwen3",
            HELLO,
            {},
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
            "<think>\n\n</think>\n\nHello!<|im_end|>\n",
        ),
        ("zephyr", HELLO, {}, "<|user|>\nHi</s>\n<|assistant|>\nHello!</s>\n"),
        ("marked", [message("system", "x"), *HELLO, message("stop", ""), SYSTEM], {}, "<Hi>Hello!"),
    ],
)
def test_what_is_rendered(name, messages, variables, expected):
    assert template(name).render(messages, **variables) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ {'é': '<a>', 'b': [1, true]} | tojson }}", '{"é": "<a>", "b": [1, true]}'),
        ("{{ tools is none }} {{ bos_token is defined }}", "True False"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),  # lines of blocks leave nothing
        ("{{ messages[0].thinking }} {{ messages[0].reasoning_content }}", "r r"),
    ],
)
def test_what_a_template_is_given(source, expected):
    asked = [message("assistant", "", reasoning="r", thinking=None)]
    assert ChatTemplate(source).render(asked) == expected
    year = datetime.datetime.now().year
    said = ChatTemplate("{{ strftime_now('%Y') }}").render(asked)
    assert said in (str(year), str(year + 1))


def test_what_is_trained_on_has_the_same_date_on_any_day():
    part = Prompts("one", ["Hi"], ["Hello!"])
    dated = ChatTemplate("{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}")
    task = as_chat(TextTask("t", part, part), dated)
    assert task.train.prompts == task.validation.prompts == ("26 Jul 2024: Hi",)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("case", [k for k, v in CONVERSATIONS.items() if v[-1]["role"] != "user"])
def test_prompt_and_completion_make_the_whole(name, case):
    own, messages = template(name), CONVERSATIONS[case]
    given = {"date_string": "today"}
    prompt, completion = prompt_and_completion(own, messages, **given)
    assert prompt + completion == own.render(messages, **given)
    assert prompt == own.render(messages[:-1], add_generation_prompt=True, **given)
    said = messages[-1]["content"].strip()
    assert said.rpartition("\n")[2] in completion and said not in prompt


COUNTED = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
LONGER = "ab{% if messages | length == 1 %}c{% endif %}"


@pytest.mark.parametrize(
    ("source", "messages", "error"),
    [
        (COUNTED, HELLO, r"does not begin with the prompt for it: '2HiHello!' in place"),
        (LONGER, HELLO, "'' in place of 'c'"),
        (COUNTED, HELLO[:1], "must be the assistant's, not 'user'"),
        (COUNTED, HELLO[1:], "needs a message"),
    ],
)
def test_where_the_prompt_is_no_beginning(source, messages, error):
    refuses(error, prompt_and_completion, ChatTemplate(source), messages)


def rendered(source, messages):
    return ChatTemplate(source, TOKENS).render(messages)


DEEP = functools.reduce(lambda inner, _: [inner], range(5000), [])


@pytest.mark.parametrize(
    ("source", "messages", "error"),
    [
        ("x", [], "a conversation needs a message"),
        ("x", ["Hi"], "must be a dict with a role, got 'Hi'"),
        ("x", [{"content": "Hi"}], "must be a dict with a role"),
        ("x", [message("user", object())], "must be plain data: Object of type object"),
        (
            "{{ raise_exception('roles\nmust alternate') }}",
            [USER],
            "messages: roles must alternate",
        ),
        ("{{ messages[0].content.x.y }}", [USER], "cannot render these messages: .*has no attr"),
        ("{{ messages[0].content + 1 }}", [USER], "cannot render these messages: "),
        (
            "{{ messages.append(1) }}",
            [USER],
            "cannot render these messages: .*'append' of 'list' object is unsafe",
        ),
        ("{{ messages.__class__.__mro__[1] }}", [USER], "cannot render these messages: .*unsafe"),
        (TEMPLATES["llama2"], [USER, USER], "chat template: .*roles must alternate user/assistant"),
        ("{% if true %}\n{% endfor %}", [], "^chat template: not a chat template: line 2: "),
        ("x", [{"role": "user", "content": DEEP}], "what is rendered must be plain data"),
    ],
)
def test_messages_that_cannot_be_rendered(source, messages, error):
    refuses(error, rendered, source, messages)


def test_without_jinja_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    refuses(r'run: pip install "lora-jax\[decoders\]"$', ChatTemplate, "x")


# ---- where templates are published --------------------------------------------------------------


def settings(folder, **content):
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


def test_the_text_in_the_settings(tmp_path):
    tokens = {"eos_token": {"content": "</s>", "lstrip": False}, "bos_token": "<s>"}
    settings(tmp_path, chat_template=TEMPLATES["llama2"], **tokens, pad_token=None)
    own = load_chat_template(tmp_path)
    assert own.tokens == TOKENS
    assert own.render(HELLO) == template("llama2").render(HELLO)


def test_the_default_of_several(tmp_path):
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    settings(tmp_path, chat_template=named)
    assert load_chat_template(tmp_path).render([USER]) == "D"
    for wrong in (5, [5], [{"name": "default"}], {"default": 3}, named[1:]):
        settings(tmp_path, chat_template=wrong)
        refuses(r"tokenizer_config\.json: chat_template must be text", load_chat_template, tmp_path)


def test_a_file_of_its_own_comes_first(tmp_path):
    settings(tmp_path, chat_template="old", eos_token="</s>")
    (tmp_path / "chat_template.jinja").write_text("é {{ eos_token }}", encoding="utf-8")
    assert load_chat_template(tmp_path).render([USER]) == "é </s>"
    (tmp_path / "chat_template.jinja").write_text("{% oops %}")
    refuses(r"chat_template\.jinja: not a chat template: line 1", load_chat_template, tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "is not UTF-8"),
        (b"{{ " + b"(" * 9000, "not a chat template: "),
        (b"{{ " + b"-" * 20000 + b"1 }}", "not a chat template: RecursionError"),
        (b"{% for x in y %}" * 900, "not a chat template: "),
        (b"{{ " + b"9" * 5000 + b" }}", "not a chat template: ValueError: Exceeds the limit"),
        (b"{% break %}", "not a chat template: SyntaxError: 'break' outside loop"),
    ],
)
def test_a_file_that_jinja_or_python_cannot_take_is_one_line(tmp_path, content, said):
    (tmp_path / "chat_template.jinja").write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        load_chat_template(tmp_path)
    assert str(tmp_path / "chat_template.jinja") in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_the_metadata_of_a_gguf_file(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(["<unk>", "<s>", "</s>"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(
        [{"name": "default", "template": TEMPLATES["llama2"]}, {"name": "rag", "template": "R"}]
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    for given in (path, tmp_path):
        own = load_chat_template(given)
        assert own.tokens == TOKENS and own.origin == str(path)
        assert own.render([USER, ANSWER]) == template("llama2").render([USER, ANSWER])


def test_where_there_is_none(tmp_path):
    settings(tmp_path, eos_token="</s>")
    for folder in (tmp_path, tmp_path / "missing"):
        refuses(r"no chat template: neither chat_template\.jin", load_chat_template, folder)
    refuses(r"gone\.gguf: no such file", load_chat_template, tmp_path / "gone.gguf")
