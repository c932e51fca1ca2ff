"""A second implementation of docs/image-identity.md: from that page alone, with the standard library alone.

It refuses nothing: what it is given is taken to be fit for a hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i386": "386"}


def canonical(config: Json, root: Path, pins: Json, packages: Json | None) -> str:
    """The canonical form of a configuration with its files; `packages` has text, python and libc."""
    document = {
        "schema": 2,
        "base": config["base"],
        "bootstrap": config.get("bootstrap"),
        "build_args": config.get("build_args"),
        "dockerfile": spelt(config["dockerfile"]),
        "files": dict(files(config, root)),
        "network": None if config.get("network") == "default" else config.get("network"),
        "packages": packages and locked(packages),
        "pins": pins,
        "platform": platform(config["platform"]),
        "requirements": config["requirements"] and spelt(config["requirements"]),
        "target": config.get("target"),
    }
    kept = {name: member for name, member in document.items() if member not in (None, {})}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def spelt(path: str) -> str:
    return unicodedata.normalize("NFC", os.path.normpath(path))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def locked(packages: Json) -> Json:
    content = packages["text"].encode().replace(b"\r\n", b"\n")
    return {"libc": packages["libc"], "python": packages["python"], "sha256": sha256(content)}


def platform(written: str) -> str:
    system, machine, *variant = written.lower().split("/")
    machine = ARCHITECTURES.get(machine, machine)
    if machine == "arm" and not variant:
        variant = ["v7"]
    if (machine, variant) in (("amd64", ["v1"]), ("arm64", ["v8"])):
        variant = []
    return "/".join([system, machine, *variant])


# files -----------------------------------------------------------------------------------------------------------


def files(config: Json, root: Path) -> Iterator[tuple[str, Json]]:
    ignored = ignoring(root, config["dockerfile"])
    for name in config.get("context", ()):
        for path in below(root, name):
            if not ignored(path):
                yield spelt(path), identity(root / path)
    for path in recipe(config, root):  # last: it is as text what it may be as a declared file, too
        yield path, {"executable": False, "sha256": sha256(text(root / path).encode())}


def identity(path: Path) -> Json:
    if path.is_symlink():
        return {"link": unicodedata.normalize("NFC", str(path.readlink()))}
    return {"executable": bool(path.stat().st_mode & 0o100), "sha256": sha256(path.read_bytes())}


def text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")


def recipe(config: Json, root: Path) -> set[str]:
    """The Dockerfile, the requirements, and what these include."""
    found = {spelt(config["dockerfile"])}
    todo = [spelt(config["requirements"])] if config["requirements"] else []
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            joined = text(root / name).replace("\\\n", "")
            for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in joined.split("\n")):
                option = re.match(r"(-r|-c)\s*=?\s*(.+)|(?:--requirement|--constraint)[\s=]\s*(.+)", line)
                value = option and ((option[1] and option[2]) or option[3])
                if value and "://" not in value:
                    todo.append(spelt(str(Path(name).parent / value)))
    return found


def below(root: Path, declared: str) -> Iterator[str]:
    """The paths of a declared file, or of all files in a declared folder."""
    top = os.path.normpath(declared)
    if not (root / top).is_dir() or (root / top).is_symlink():
        yield top
        return
    for folder, folders, names in os.walk(root / top):
        here = Path(folder).relative_to(root)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        folders[:] = [name for name in folders if name not in links and not left_out(str(here / name), top)]
        yield from (str(here / name) for name in [*names, *links] if not left_out(str(here / name), top))


def left_out(path: str, declared: str) -> bool:
    if Path(path).name in (".git", "__pycache__", ".venv", ".repro"):
        return True
    written = re.match(r"(runs|mlartifacts|mlruns|mlflow\.db[^/]*|conf/local)(/|$)", path)
    return bool(written) and not f"{declared}/".startswith(f"{written[1]}/")


# .dockerignore: the rules of the Docker builder --------------------------------------------------------------------


def ignoring(root: Path, dockerfile: str) -> Any:
    both = [f"{os.path.normpath(dockerfile)}.dockerignore", ".dockerignore"]
    chosen = next((root / name for name in both if (root / name).exists()), None)
    lines = text(chosen).split("\n") if chosen else []
    rules = [pattern(line.strip()) for line in lines if line.strip() and not line.startswith("#")]

    def ignored(path: str) -> bool:
        parts = path.split("/")
        result = False
        for excludes, expression in rules:
            if any(expression.fullmatch("/".join(parts[:depth])) for depth in range(1, len(parts) + 1)):
                result = excludes
        return result or path in both

    return ignored


def pattern(line: str) -> tuple[bool, re.Pattern[str]]:
    excludes = not line.startswith("!")
    path = os.path.normpath(line.lstrip("!").strip()).lstrip("/")
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", path)
    return excludes, re.compile("".join(words.get(part) or re.escape(part) for part in parts), re.DOTALL)
