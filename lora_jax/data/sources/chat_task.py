"""A text-to-text task as conversations: each prompt is what a user says to the model."""

import dataclasses

from lora_jax.data.sources import e2e
from lora_jax.data.sources.instructions import bare
from lora_jax.data.tasks.prompts import Prompts
from lora_jax.data.tasks.text_task import TextTask
from lora_jax.data.tokenizing.chat_templates import ChatTemplate


def as_chat(task: TextTask, template: ChatTemplate, begin: str = "") -> TextTask:
    """The task with its prompts as a model's chat template has them, up to where it answers.

    Alpaca's words around an instruction are left out, and GPT-2's end of text after a prompt of
    E2E, which may be another model's own special token. Completions, options and references stay:
    an answer is what the assistant says.

    Args:
      begin: what the tokenizer puts before every text by itself; a template's own is left out then.

    Raises:
      ValueError: the template cannot render a prompt.
    """

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
