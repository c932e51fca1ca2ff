"""A bundle -> what is in it, after every byte of it was looked at; nothing of it is used before."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from repro import foreign, identity, tolerant
from repro.bundle import contents, script
from repro.bundle.contents import CANONICAL, CODE_BUNDLE, DATA, IMAGE, MANIFEST, OUTPUTS, RECORD
from repro.bundle.stored import Reader
from repro.errors import BadInputError
from repro.experiment import Value
from repro.images import oci
from repro.images.pieces import Progress, Say
from repro.record import Record

NAMED = 10  # of several damaged files
HINTS = ("copy it again from where it came, or have it exported again",)


class Checked(Value, frozen=True, kw_only=True):
    """A bundle whose every byte is as it was written, and fits the record in it."""

    record: Record
    digest: str  # sha256 that names the record
    files: dict[str, int]  # names and sizes
    sha256: dict[str, str]
    image: oci.Content | None  # None: a thin one

    @property
    def lacks(self) -> tuple[str, ...]:
        """What a thin bundle lacks."""
        datasets = [
            f"data {dataset.name}"
            for dataset in self.record.planned.data
            if any(f"{DATA}{dataset.name}/{file.path}" not in self.files for file in dataset.files)
        ]
        return (*([] if self.image else ["image"]), *datasets)


@contextmanager
def opened(path: Path, say: Say) -> Iterator[tuple[Checked, Reader]]:
    """A bundle that was checked, to read from.

    Raises:
        BadInputError: it cannot be read, or a byte of it is not as it was written; which file, with both digests.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise BadInputError(
            f"{path} cannot be read", evidence=[str(error)], hints=["give the file that `repro export` wrote"]
        ) from error
    with file:
        reader = Reader(file, path)
        yield check(reader, say), reader


def check(reader: Reader, say: Say) -> Checked:
    """Look at every byte, then at whether all of it belongs to one run.

    Raises:
        BadInputError: as `opened`.
    """
    names = set(reader.members)
    if missing := sorted({MANIFEST, RECORD, CANONICAL, CODE_BUNDLE} - names):
        raise _damaged(reader, [f"{name} is missing" for name in missing])
    digests = _digests(reader, say)
    try:
        wanted = dict(contents.listed(reader.read(MANIFEST)))
    except ValueError as error:
        raise _damaged(reader, [f"{MANIFEST}: {error}"]) from error
    if found := _differences(wanted, digests):
        raise _damaged(reader, found)
    record = _record(reader)
    digest = digests[CANONICAL]
    files = {name: member.size for name, member in reader.members.items()}
    checked = Checked(record=record, digest=digest, files=files, sha256=digests, image=_image(reader, files, record))
    strange = _foreign(checked)
    if "config.json" not in names or _json(reader, "config.json") != record.planned.config:
        strange.append("config.json is not the configuration in the record")
    strange += [
        f"{name} is not what the record says of the outputs"
        for name, text in script.lists(record.ended.outputs if record.ended else ()).items()
        if name not in names or reader.read(name) != text
    ]
    if strange:
        raise _damaged(reader, strange)
    return checked


def _digests(reader: Reader, say: Say) -> dict[str, str]:
    """The sha256 of each file, which zip's own checksums and what stands around it fit."""
    progress = Progress("checked", sum(member.size for member in reader.members.values()), say)
    digests, wrong = {}, [f"{name}: its entry is damaged" for name in reader.folders if not reader.framed(name)]
    for name, member in reader.members.items():
        hasher, crc = hashlib.sha256(), 0
        for block in reader.blocks(name):
            hasher.update(block)
            crc = zlib.crc32(block, crc)
            progress.add(len(block))
        digests[name] = hasher.hexdigest()
        if not reader.framed(name):
            wrong.append(f"{name}: the bytes before it are not as `repro export` writes them")
        elif crc != member.crc and name == MANIFEST:  # of all others the sha256 is known
            wrong.append(f"{name}: expected CRC-32 {member.crc:08x}, found {crc:08x}")
        elif crc != member.crc:
            wrong.append(_difference(reader, name, digests[name]))
    if wrong:
        raise _damaged(reader, wrong)
    return digests


def _difference(reader: Reader, name: str, found: str) -> str:
    try:
        wanted = dict(contents.listed(reader.read(MANIFEST))).get(name, "none")
    except ValueError:
        wanted = "unknown: the manifest is damaged, too"
    if wanted == found:
        return f"{name}: its CRC-32 in the table of contents is not that of its content"
    return f"{name}: expected {wanted}, found {found}"


def _differences(wanted: dict[str, str], digests: dict[str, str]) -> list[str]:
    found = [f"{name} is missing" for name in sorted(wanted.keys() - digests.keys())]
    found += [f"{name} is not in {MANIFEST}" for name in sorted(digests.keys() - wanted.keys() - {MANIFEST})]
    both = sorted(wanted.keys() & digests.keys())
    return found + [
        f"{name}: expected {wanted[name]}, found {digests[name]}" for name in both if wanted[name] != digests[name]
    ]


def _damaged(reader: Reader, found: list[str]) -> BadInputError:
    more = [f"... and {len(found) - NAMED} more"] if len(found) > NAMED else []
    return BadInputError(
        f"{reader.path} is not as it was written, and nothing of it was used",
        evidence=[*found[:NAMED], *more],
        hints=HINTS,
    )


# one run --------------------------------------------------------------------------------------------------------


def _record(reader: Reader) -> Record:
    plain, form = _json(reader, RECORD), _json(reader, CANONICAL)
    try:
        record, unknown = tolerant.read(plain, Record)
        named = tolerant.read(identity.plain(form), Record)[0] if unknown else record
        ours, told = contents.canonical(record), contents.canonical(named) if unknown else reader.read(CANONICAL)
    except (TypeError, ValueError, RecursionError) as error:  # msgspec's are ValueErrors
        raise BadInputError(
            f"{reader.path}: the record cannot be read; another version of repro may have written it",
            evidence=[str(error)],
            hints=["REPRODUCE.md in it tells how to use it without repro"],
        ) from error
    # how members that we do not know look in it is not ours to tell; what we know is the same in both
    if ours != told:
        raise _damaged(reader, [f"{CANONICAL} is not the canonical form of {RECORD}"])
    if found := foreign.strange(record):
        raise _damaged(reader, [f"{RECORD}: {each}" for each in found])
    return record


def _json(reader: Reader, name: str) -> Any:
    try:
        return msgspec.json.decode(reader.read(name))
    except (msgspec.DecodeError, RecursionError) as error:
        raise _damaged(reader, [f"{name} is no JSON that can be read: {error}"]) from error


def _image(reader: Reader, files: dict[str, int], record: Record) -> oci.Content | None:
    layout = contents.part(files, IMAGE)
    if not layout:
        return None
    content = oci.described(layout, lambda name: reader.read(IMAGE + name), reader.path)
    used = record.planned.image
    if content.tag != used.tag or used.layers not in (content.layers, ()):  # earlier versions listed none
        raise _damaged(reader, [f"{IMAGE} holds {content.tag}, and the run used {used.tag}; or its layers differ"])
    if used.settings not in (content.settings, ""):
        raise _damaged(reader, [f"{IMAGE} holds an image with another environment or entry point than the run's"])
    return content


def _foreign(checked: Checked) -> list[str]:
    """Files that are as the manifest says, and not as the record says."""
    record, found = checked.record, []
    ended = record.ended
    assert ended is not None  # noqa: S101 - `_record` has looked
    wanted = {OUTPUTS + file.path: file.sha256 for file in ended.outputs}
    if any(name.startswith(DATA) for name in checked.files):
        wanted |= {
            f"{DATA}{dataset.name}/{file.path}": file.sha256
            for dataset in record.planned.data
            for file in dataset.files
        }
    for name, digest in wanted.items():
        if checked.sha256.get(name) != digest:
            found.append(f"{name}: the record says {digest}, found {checked.sha256.get(name, 'nothing')}")
    for name in checked.files:
        if name.startswith((OUTPUTS, DATA)) and name not in wanted:
            found.append(f"{name} is not in the record")
        if name.startswith(f"{IMAGE}{oci.BLOBS}") and checked.sha256[name] != name.rpartition("/")[2]:
            found.append(f"{name}: its sha256 is {checked.sha256[name]}")
    return found
