"""Which Python this is, and the packages that it finds: one line of JSON on stdout.

Handed to `python -c` as text, in containers of images that we have not made: Python 3.6 runs it, and the folder of this
file is not on its path.
"""

import json
import platform
import re
import sys
from pathlib import Path


def packages(path):
    """[name, version] of each package on `path`; of two by one name, the one that an import would find."""
    found = {}
    for folder in filter(Path.is_dir, map(Path, path)):
        for place in sorted(folder.iterdir()):
            if place.suffix in (".dist-info", ".egg-info"):
                package = described(place) or named(place.stem)
                found.setdefault(re.sub("[-_.]+", "-", package[0]).lower(), package)
    return list(found.values())


def described(place):
    """What the metadata in or at `place` says; None without any."""
    for file in (place / "METADATA", place / "PKG-INFO", place):
        if file.is_file():
            head = file.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
            headers = dict(re.findall(r"^(Name|Version):[ \t]*(\S+)", head, re.MULTILINE))
            if len(headers) == 2:
                return [headers["Name"], headers["Version"]]
    return None


def named(stem):
    """What a folder's name says: images are made smaller by removing metadata."""
    name, _, version = stem.partition("-")
    return [name, version]


print(json.dumps({"version": platform.python_version(), "packages": packages(filter(None, sys.path))}))
