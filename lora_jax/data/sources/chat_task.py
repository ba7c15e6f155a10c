"""A text-to-text task as conversations: each prompt is what a user says to the model."""

import dataclasses
import datetime

from lora_jax.data.sources import e2e
from lora_jax.data.sources.alpaca import bare
from lora_jax.data.tasks.prompts import Prompts
from lora_jax.data.tasks.text_task import TextTask
from lora_jax.data.tokenizing.chat_templates import ChatTemplate

NOW = datetime.datetime(2024, 7, 26)
"""The date in prompts: the one that Llama 3's template has where it is given none."""


def as_chat(task: TextTask, template: ChatTemplate, begin: str = "") -> TextTask:
    """The task with its prompts in a model's chat template, up to where the assistant answers.

    Two things are removed from prompts: Alpaca's words around an instruction, and GPT-2's
    end-of-text token after a prompt of E2E, which may be a special token of another model.
    Completions, options and references are unchanged: they are what the assistant says.

    A template that writes today's date writes that of `NOW`, so that a run is the same on any day.

    Args:
      begin: the text that the tokenizer itself puts before every text; it is removed from the start
        of rendered prompts.

    Raises:
      ValueError: the template cannot render a prompt.
    """

    template = dataclasses.replace(template, now=NOW)

    def asked(part: Prompts) -> Prompts:
        texts = [bare(prompt).removesuffix(e2e.SEPARATOR).strip() for prompt in part.prompts]
        said = [{"role": "user", "content": text} for text in texts]
        prompts = [template.render([each], True).removeprefix(begin) for each in said]
        return dataclasses.replace(part, prompts=prompts)

    return dataclasses.replace(
        task,
        train=asked(task.train),
        validation=asked(task.validation),
        extra={name: asked(part) for name, part in task.extra.items()},
        unlabelled={name: asked(part) for name, part in task.unlabelled.items()},
    )
