"""`repro VERB`, `python -m repro VERB`."""

from __future__ import annotations

import sys
from typing import NoReturn

from repro import start


def entry() -> NoReturn:
    """The console script."""
    start.program("repro.cli", sys.argv[1:])


if __name__ == "__main__":
    entry()
