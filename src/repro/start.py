"""What runs first: imports the rest, so that Ctrl-C is no traceback from the first import on."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn


def program(module: str, arguments: list[str]) -> NoReturn:
    """Exit with the code of `main(arguments)` in a module of ours."""
    try:
        code = importlib.import_module(module).main(arguments)
    except KeyboardInterrupt:  # while it was being imported, or outside of what a verb guards
        print("repro: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
