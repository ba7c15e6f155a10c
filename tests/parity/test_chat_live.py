"""Chat templates beside transformers' own rendering of them."""

import json

import pytest
import tokenizers
from chat_templates import CONVERSATIONS, TEMPLATES, USER, message
from tokenizers import models

from lora_jax.data.tokenizing.chat_templates import load_chat_template

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

TOOLS = [
    {
        "type": "function",
        "function": {"name": "météo", "description": "<b>", "parameters": {"type": "object"}},
    }
]
VARIABLES = {
    "none": {},
    "date": {"date_string": "1 Jan 2025"},
    "tools": {"tools": TOOLS},
    "silent": {"enable_thinking": False},
    "other": {"bos_token": "<other>"},
}


def folder_of(path, template, **tokens):
    """A tokenizer that knows no word, with a template."""
    backend = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0}, "<unk>"))
    backend.add_special_tokens(list(tokens.values()))
    backend.save(str(path / "tokenizer.json"))
    content = {"chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast", **tokens}
    (path / "tokenizer_config.json").write_text(json.dumps(content))
    return transformers.AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tokens", [{"bos_token": "<s>", "eos_token": "</s>"}, {}])
def test_conversations_as_in_transformers(name, tokens, tmp_path):
    if not tokens and name not in ("chatml", "qwen3", "marked"):
        pytest.skip("this form names the tokens")
    theirs = folder_of(tmp_path, TEMPLATES[name], **tokens)
    ours, texts = load_chat_template(tmp_path), set()
    for messages in CONVERSATIONS.values():
        for given in VARIABLES.values():
            for asks in (False, True):
                expected = theirs.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=asks, **given
                )
                assert ours.render(messages, add_generation_prompt=asks, **given) == expected
                texts.add(expected)
    assert len(texts) >= 7


def test_calls_of_tools_as_in_transformers(tmp_path):
    theirs = folder_of(tmp_path, TEMPLATES["qwen3"])
    call = {"function": {"name": "météo", "arguments": {"où": "Nîmes"}}, "type": "function"}
    messages = [USER, message("assistant", None, tool_calls=[call]), message("user", "Merci")]
    expected = theirs.apply_chat_template(messages, tools=TOOLS, tokenize=False)
    assert load_chat_template(tmp_path).render(messages, tools=TOOLS) == expected
    assert '{"où": "Nîmes"}' in expected


def test_what_transformers_refuses_is_refused(tmp_path):
    theirs = folder_of(tmp_path, TEMPLATES["llama2"], bos_token="<s>", eos_token="</s>")
    with pytest.raises(Exception, match="roles must alternate"):
        theirs.apply_chat_template([USER, USER], tokenize=False)
    with pytest.raises(ValueError, match="roles must alternate"):
        load_chat_template(tmp_path).render([USER, USER])
