"""Run alone: reads every task through tensorflow-datasets and writes what it saw as JSON.

A process of its own, because TensorFlow must be seen not to be imported by anything in it: a
stand-in on the path would be imported and noted if anyone asked for it.
"""

import json
import os
import sys
from pathlib import Path

import official

from lora_jax.data import load_task
from lora_jax.data.sources.tfds import load


def seen(task):
    parts = {"train": task.train, "validation": task.validation, **task.extra, **task.unlabelled}
    return {
        name: [
            part.texts,
            part.second_texts,
            None if part.labels is None else part.labels.tolist(),
            part.ids,
        ]
        for name, part in parts.items()
    }


def registered(name, folder):
    """The downloads of a task, with their checksums made known to tensorflow-datasets."""
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.core.units import Size
    from tensorflow_datasets.text import glue, super_glue

    builder = glue.Glue if name.startswith("glue/") else super_glue.SuperGlue
    for file, (size, digest) in official.downloads(name, folder).items():
        for url, info in builder.url_infos.items():
            if info.filename == file:
                known = UrlInfo(size=Size(size), checksum=digest, filename=file)
                builder.url_infos = {**builder.url_infos, url: known}


def refused(name, folder):
    """What is said of a folder that cannot be read."""
    try:
        load_task(name, "tfds", folder)
    except (FileNotFoundError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def refusals(root):
    (root / "empty").mkdir()
    (root / "empty" / "msr_paraphrase_train.txt").touch()
    official.downloads("glue/rte", root / "other")  # small, under the official name
    cache = os.environ["XDG_CACHE_HOME"]
    os.environ["XDG_CACHE_HOME"] = str(root / "unused")
    said = {
        "incomplete": refused("glue/mrpc", root / "empty"),
        "absent": refused("super_glue/cb", root / "empty"),
        "other content": refused("glue/rte", root / "other"),
    }
    os.environ["XDG_CACHE_HOME"] = cache
    return said


def main(root):
    (root / "refused.json").write_text(json.dumps(refusals(root)))
    found = {}
    for name in official.LAYOUT:
        folder = root / name.split("/")[0]
        registered(name, folder)
        if name != "glue/ax":
            found[name] = seen(load_task(name, "tfds", folder))
    found["glue/ax"] = seen(load_task("glue/ax", "tfds", root / "glue"))
    again = load("glue/cola", root / "cache" / "lora_jax" / "tfds")  # a prepared folder
    found["prepared"] = seen(again)
    (root / "seen.json").write_text(json.dumps(found))
    (root / "modules.json").write_text(json.dumps(sorted(sys.modules)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
