"""Fuzz one decoder, guided by the coverage of our own code.

``python -m tests.fuzz.fuzz NAME -max_total_time=60`` starts from the seeds in seeds/NAME and adds
what reaches new code; the options are libFuzzer's. Needs the package atheris.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["grit_runtime"]):
    from tests.fuzz import decoders


def main() -> None:
    name, *options = sys.argv[1:]
    corpus = decoders.SEEDS / name
    corpus.mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: decoders.decode(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
