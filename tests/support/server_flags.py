"""Print what `experiments.serve` makes of its flags, and start no server."""

import dataclasses
import json

from experiments import cli, serve
from experiments.serving import run_server


class Told(SystemExit):
    """What is wanted has been printed."""


def tell(name, folder, settings, load):
    sizes = dataclasses.asdict(settings)
    loads = [load.func.__name__, *load.args]
    print(json.dumps({"name": name, "folder": str(folder.root), **sizes, "load": loads}))
    raise Told(0)


run_server.make_state = tell
cli.main(serve.serve)
