"""What an image was made from, as it travels: in a label of the image, in the folder of a run. Nothing secret is in it.

docs/image-identity.md describes both forms.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from repro.experiment import Value
from repro.recipe.spec import ImageSpec

FORM = 1
FILE = "image-inputs.json"  # among the inputs of a run
LABEL_LIMIT = 64 << 10  # bytes: one argument of a program holds 128 KiB, a request line of the engine 1 MiB
TEXT_LIMIT = 32 << 10  # bytes; of a longer text there is the digest alone
ENTRY = 42  # bytes of a label that a file takes at least: nothing compresses its digest
VALUE_LIMIT = 80  # characters of a build argument; of a longer one there is the digest alone
UNPACKED_LIMIT = 16 << 20  # bytes: a label of somebody else's image may be anything
COMPRESSED = "zlib:"
SECRET_NAME = re.compile(r"token|passw|pwd|secret|credential|key", re.IGNORECASE)
USER_OF_URL = re.compile(r"(?<=://)(?!git@)[^/\s\"']+@")  # a token may stand in either place
ASSIGNED = re.compile(r"\b(\w+)=(\"[^\"]*\"|'[^']*'|[^\s\"'$][^\s\"']*)")  # a variable's value is not here
OLD_ENV = re.compile(r"\s*ENV\s+(\w+)\s+([^=\s].*)", re.IGNORECASE)  # ENV NAME value
HASHES = re.compile(r"--hash[= ]\S+")


class Inputs(Value, frozen=True, kw_only=True):
    """What decided an image, as far as anybody may see it."""

    spec: str  # the spec hash
    manifest: dict[str, Any]  # the canonical form, with digests for values that may be secret or are long
    # the Dockerfile and the requirements by path, without what is secret or long in them
    texts: dict[str, str] = msgspec.field(default_factory=dict)
    packages: dict[str, str] = msgspec.field(default_factory=dict)  # that repro.lock pins: name -> version

    @classmethod
    def of(
        cls, spec: str, manifest: Mapping[str, Any], texts: Mapping[str, str], packages: Mapping[str, str] | None = None
    ) -> Inputs:
        """Of all these, what is fit to be seen."""
        arguments = {
            key: {"sha256": sha256(value.encode())} if is_secret(key, value) or len(value) > VALUE_LIMIT else value
            for key, value in manifest.get("build_args", {}).items()
        }
        shown = {path: without_secrets(text, path == manifest["dockerfile"]) for path, text in texts.items()}
        seen = {**manifest, **({"build_args": arguments} if arguments else {})}
        return cls(
            spec=spec,
            manifest=msgspec.json.decode(canonical(seen)),  # as it will be read again: lists for tuples
            texts={path: text for path, text in shown.items() if len(text.encode()) <= TEXT_LIMIT},
            packages=dict(packages or {}),
        )


def of_spec(spec: ImageSpec) -> Inputs:
    """The inputs of a spec."""
    return Inputs.of(spec.digest, spec.manifest(), spec.recipe(), _pinned(spec))


def _pinned(spec: ImageSpec) -> dict[str, str]:
    """Name -> version of the packages that the lock pins. It is for one target, so that nothing has to be selected."""
    if spec.packages is None:
        return {}
    try:
        packages = msgspec.toml.decode(spec.packages.content)["packages"]
        return {each["name"]: each.get("version", "a file") for each in packages}
    except (msgspec.MsgspecError, KeyError, TypeError):  # whoever installs it says so in better words
        return {}


class _Shape(msgspec.Struct):
    """What can be relied on in a manifest, whoever wrote it; all else is shown as it is."""

    dockerfile: str = ""
    files: dict[str, dict[str, bool | int | str]] = {}
    build_args: dict[str, Any] = {}
    bootstrap: dict[str, Any] | None = None
    pins: dict[str, Any] = {}
    packages: dict[str, Any] = {}


def is_secret(name: str, value: str) -> bool:
    """Whether the value of a build argument is nobody's to see."""
    return bool(SECRET_NAME.search(name) or USER_OF_URL.search(value))


def without_secrets(text: str, dockerfile: bool) -> str:
    """A text as people may see it: no user in a URL, digests for what is assigned to a name such as API_TOKEN.

    Requirements are without their hashes, too: they say nothing that the version does not.
    """
    if dockerfile:
        return "\n".join(map(_without_assigned, without_users(text).split("\n")))
    return HASHES.sub("--hash=...", without_users(text))


def without_users(text: str) -> str:
    """A text without the users and passwords of its URLs, as a record may have it."""
    return USER_OF_URL.sub("***@", text)


def _without_assigned(line: str) -> str:
    def digest(found: re.Match[str]) -> str:
        if not SECRET_NAME.search(found[1]):
            return found[0]
        return found[0].removesuffix(found[2]) + f"sha256:{sha256(found[2].encode())[:12]}"

    return OLD_ENV.sub(digest, line) if OLD_ENV.match(line) else ASSIGNED.sub(digest, line)


# the two forms ----------------------------------------------------------------------------------------------------


def document(inputs: Inputs) -> str:
    """The inputs as a file for people and programs."""
    return msgspec.json.format(_encoded(inputs), indent=2).decode() + "\n"


def label(inputs: Inputs) -> str:
    """The inputs as the value of a label: compressed where that is shorter, with less detail where it must be."""
    while (text := _packed(inputs)) is None:
        files = inputs.manifest["files"]
        fewer = _summarised(files, keep=inputs.texts)
        if len(fewer) < len(files):
            inputs = msgspec.structs.replace(inputs, manifest={**inputs.manifest, "files": fewer})
        elif inputs.texts or inputs.packages:
            inputs = msgspec.structs.replace(inputs, texts={}, packages={})
        else:
            return ""
    return text


def read(text: str) -> Inputs | None:
    """The inputs that a label or a document holds; None when it holds none."""
    try:
        if text.startswith(COMPRESSED):
            packed = base64.urlsafe_b64decode(text.removeprefix(COMPRESSED))
            text = zlib.decompressobj().decompress(packed, UNPACKED_LIMIT).decode()
        found = msgspec.json.decode(text)
        if "manifest" not in found:  # of the time when the label was the canonical form itself
            found = {"spec": sha256(text.encode()), "manifest": found}
        elif found.pop("form") != FORM:
            return None
        msgspec.convert(found["manifest"], _Shape)
        return msgspec.convert(found, Inputs)
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError, RecursionError, zlib.error):
        return None


def _encoded(inputs: Inputs) -> bytes:
    members = msgspec.structs.asdict(inputs)
    return canonical({"form": FORM, **{name: member for name, member in members.items() if member != {}}})


def _packed(inputs: Inputs) -> str | None:
    """The value of a label; None when it would be too long."""
    if len(inputs.manifest.get("files", ())) > LABEL_LIMIT // ENTRY:  # no need to try
        return None
    plain = _encoded(inputs)
    packed = COMPRESSED + base64.urlsafe_b64encode(zlib.compress(plain, 9)).decode()
    shorter = min(packed, plain.decode(), key=len)
    return shorter if len(shorter) <= LABEL_LIMIT else None


def canonical(value: Any) -> bytes:
    """The one JSON of a value: sorted keys, no spaces."""
    return msgspec.json.encode(value, order="deterministic")


def sha256(content: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(content).hexdigest()


# folders in place of their files ----------------------------------------------------------------------------------


def aligned(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two lists of files with the same folders summarised, so that they can be compared."""
    return _folded_as(one, other), _folded_as(other, one)


def _folded_as(files: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    return folded(files, {path for path in model if path.endswith("/") and path not in files}, keep=model)


def _summarised(files: Mapping[str, Any], keep: Collection[str]) -> dict[str, Any]:
    """The same files with the folders that hold most of them summarised, a quarter at a time; the top comes last."""
    held = Counter(_folder(path) for path in files if path not in keep)
    chosen: set[str] = set()
    fewer = 0
    for folder, count in sorted(held.items(), key=lambda each: (each[0] == "./", -each[1], each[0])):
        if fewer > len(files) // 4 or (chosen and folder == "./"):
            break
        chosen.add(folder)
        fewer += count - 1
    return folded(files, chosen, keep)


def _folder(path: str) -> str:
    parent = path.rstrip("/").rpartition("/")[0]
    return f"{parent}/" if parent else "./"


def folded(files: Mapping[str, Any], folders: Collection[str], keep: Collection[str]) -> dict[str, Any]:
    """The files with one entry for all below each of `folders`, a digest of the tree; those in `keep` stay."""
    inside: dict[str, dict[str, Any]] = {}
    result = {}
    for path, entry in files.items():
        folder = None if path in keep else _outermost(path, folders)
        if folder is None:
            result[path] = entry
        else:
            inside.setdefault(folder, {})[path.removeprefix(folder)] = entry
    return result | {folder: _tree(below) for folder, below in inside.items()}


def _outermost(path: str, folders: Collection[str]) -> str | None:
    if "./" in folders:
        return "./"
    ends = (at for at, letter in enumerate(path[:-1]) if letter == "/")
    return next((path[: at + 1] for at in ends if path[: at + 1] in folders), None)


def _tree(files: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a folder: how many files are below it, and a digest over its entries, folder by folder."""
    entries: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for path, entry in files.items():
        name, _, rest = path.partition("/")
        if rest:
            below.setdefault(f"{name}/", {})[rest] = entry
        else:
            entries[path] = entry
    entries |= {name: _tree(inside) for name, inside in below.items()}
    return {"files": sum(entry.get("files", 1) for entry in entries.values()), "tree": sha256(canonical(entries))}
