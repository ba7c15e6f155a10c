"""The process of one contender.

    python -m benchmarks.contenders '{"side": "ours", "case": {...}}'

It makes the contender, works once, and prints a line of JSON with the facts. For each line with a
number, it then works so often, and answers with the seconds of each time.
"""

import json
import sys
import time

from benchmarks.cases import Case, Contender
from benchmarks.contenders import make
from benchmarks.contenders.made import facts


def serve(contender: Contender) -> None:
    made = make(contender)
    print(json.dumps(facts(made)), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = time.perf_counter()
            made.work()
            seconds.append(time.perf_counter() - began)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    said = json.loads(sys.argv[1])
    serve(Contender(said["side"], Case(**said["case"])))
