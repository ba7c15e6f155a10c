"""The decoders of `make_fixtures/decoders.py`: their names, and the shapes of their tensors."""

import json

from make_fixtures.decoders import CASES, FIXTURES

SHAPES = json.loads((FIXTURES / "decoders_shapes.json").read_text())


NAMES = list(CASES)
