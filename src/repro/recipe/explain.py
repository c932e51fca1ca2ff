"""Two lists of inputs -> which of them changed, down to the line and the package; pure."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from repro.build import context
from repro.experiment import Value
from repro.recipe.inputs import Inputs, aligned

WIDTH = 100  # of a value in a line for people
DIGEST = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}")  # people compare the first digits
SHOWN_APART = {"base", "bootstrap", "pins", "packages", "build_args", "files"}  # the rest of a manifest comes last
ELSEWHERE = {"network": "build.network", "schema": "schema"}  # all others are keys of the group `image`


Line = tuple[int, str]  # its number, and what it says


class Change(Value, frozen=True, kw_only=True):
    """One input that differs."""

    input: str  # the file or the configuration's key, as a user finds it
    line: int | None = None  # of the file: as it is now, or was where it is gone
    what: str = ""  # within the input: a package, the mode
    before: str | None = None  # None: it was not there
    after: str | None = None  # None: it is not there any more

    @property
    def text(self) -> str:
        """The change as a line for people."""
        place = f"{self.input}:{self.line}" if self.line else self.input
        if self.before is None:
            said = f"added {_short(self.after)}"
        elif self.after is None:
            said = f"removed {_short(self.before)}"
        else:
            said = f"{_short(self.before)} -> {_short(self.after)}"
        return "  ".join([place, " ".join(filter(None, (self.what, said)))])


def changes(before: Inputs, after: Inputs) -> tuple[Change, ...]:
    """What changed, causes first: base, pins, Dockerfile, requirements, packages, build arguments, files, the rest."""
    return tuple(_changes(before, after))


def _changes(before: Inputs, after: Inputs) -> Iterator[Change]:
    was, now = before.manifest, after.manifest
    yield from _value("image.base", was.get("base"), now.get("base"))
    yield from _members("image.bootstrap", was.get("bootstrap"), now.get("bootstrap"))
    yield from _members("repro.lock", was.get("pins"), now.get("pins"))
    old, new = aligned(was.get("files", {}), now.get("files", {}))
    # the files whose texts tell more than their digests, the Dockerfile first
    told = sorted(
        {*before.texts} & {*after.texts} & {*old} & {*new}, key=lambda path: (path != now["dockerfile"], path)
    )
    for path in told:
        if old[path] != new[path]:
            yield from _text(path, before, after)
    yield from _packages(before, after)
    yield from _members("image.build_args", was.get("build_args"), now.get("build_args"))
    for path in sorted({*old, *new} - {*told}):
        yield from _file(path, old.get(path), new.get(path))
    for key in sorted({*was, *now} - SHOWN_APART):
        yield from _value(ELSEWHERE.get(key, f"image.{key}"), was.get(key), now.get(key))


# one input --------------------------------------------------------------------------------------------------------


def _value(name: str, was: Any, now: Any) -> Iterator[Change]:
    if was != now:
        yield Change(input=name, before=_shown(was), after=_shown(now))


def _members(name: str, was: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> Iterator[Change]:
    was, now = was or {}, now or {}
    for key in sorted({*was, *now}):
        if was.get(key) != now.get(key):
            yield Change(input=name, what=key, before=_shown(was.get(key)), after=_shown(now.get(key)))


def _packages(before: Inputs, after: Inputs) -> Iterator[Change]:
    """What repro.lock pins: each package, and for which Python; where one side has no such lock, that alone."""
    was, now = (dict(each.manifest.get("packages") or {}) for each in (before, after))
    if was and now:
        found = [*_members("repro.lock", before.packages, after.packages)]
        digests = [{"sha256": each.pop("sha256", "")} for each in (was, now)]
        found += _members("repro.lock", was, now)
        yield from found or _value("repro.lock", *digests)
    elif was or now:
        counts = [
            f"{len(each.packages)} pinned" if has else "not pinned" for each, has in ((before, was), (after, now))
        ]
        yield Change(input="repro.lock", what="packages", before=counts[0], after=counts[1])


def _file(path: str, was: dict[str, Any] | None, now: dict[str, Any] | None) -> Iterator[Change]:
    if was is None or now is None:
        yield Change(input=path, before=_identity(was), after=_identity(now))
        return
    if _identity(was) != _identity(now):
        yield Change(input=path, before=_identity(was), after=_identity(now))
    if "sha256" in was and "sha256" in now and was.get("executable") != now.get("executable"):
        yield Change(input=path, what="mode", before=_mode(was), after=_mode(now))


def _identity(entry: dict[str, Any] | None) -> str | None:
    if entry is None:
        return None
    if "link" in entry:
        return f"link to {entry['link']}"
    if "tree" in entry:
        return f"{entry.get('files')} files, tree sha256:{entry['tree']}"
    return _shown(entry)


def _mode(entry: dict[str, Any]) -> str:
    return "755" if entry.get("executable") else "644"


def _shown(value: Any) -> str | None:
    """A value as text."""
    if value is None:
        return None
    if isinstance(value, dict) and "sha256" in value:
        return f"sha256:{value['sha256']}"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return str(value)


def _short(value: str | None) -> str:
    text = DIGEST.sub(r"\1", value or "''")
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


# texts ------------------------------------------------------------------------------------------------------------


def _text(path: str, before: Inputs, after: Inputs) -> Iterator[Change]:
    lines = _dockerfile if path == after.manifest["dockerfile"] else _requirements
    found = tuple(lines(path, before.texts[path], after.texts[path]))
    yield from found
    if not found:
        was, now = (_shown(each.manifest["files"][path]) for each in (before, after))
        yield Change(input=path, what="comments, order, hashes or spacing", before=was, after=now)


def _dockerfile(path: str, was: str, now: str) -> Iterator[Change]:
    before, after = _numbered(was), _numbered(now)
    matcher = difflib.SequenceMatcher(None, [line for _, line in before], [line for _, line in after], autojunk=False)
    for kind, i, i_end, j, j_end in matcher.get_opcodes():
        if kind != "equal":
            for one, other in itertools.zip_longest(before[i:i_end], after[j:j_end]):
                yield _line_change(path, "", one, other)


def _line_change(path: str, what: str, one: Line | None, other: Line | None) -> Change:
    number = other[0] if other else one[0] if one else None
    return Change(input=path, line=number, what=what, before=one and one[1], after=other and other[1])


def _numbered(text: str) -> list[Line]:
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _requirements(path: str, was: str, now: str) -> Iterator[Change]:
    before, after = _lines(was), _lines(now)
    found = []
    for name in {**before, **after}:
        pairs = itertools.zip_longest(*_without_common(before.get(name, []), after.get(name, [])))
        found += [_line_change(path, name, one, other) for one, other in pairs]
    return iter(sorted(found, key=lambda change: change.line or 0))


def _without_common(before: list[Line], after: list[Line]) -> tuple[list[Line], list[Line]]:
    was, now = {value for _, value in before}, {value for _, value in after}
    return [each for each in before if each[1] not in now], [each for each in after if each[1] not in was]


def _lines(text: str) -> dict[str, list[Line]]:
    """The lines of a requirements file by what they are about."""
    found: dict[str, list[Line]] = {}
    for number, line in context.logical_lines(text):
        if line:
            subject, value = _parted(line)
            found.setdefault(subject, []).append((number, value))
    return found


def _parted(line: str) -> tuple[str, str]:
    """(package with its extras, version or whatever else is asked for); (option, value); ("", a path)."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    if line.startswith("-"):
        option, *value = re.split(r"[\s=]+", line, maxsplit=1)
        return option, "".join(value)
    try:
        wanted = Requirement(line.partition(" --")[0])
    except InvalidRequirement:
        return "", line
    extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
    version = str(wanted.specifier)
    if version.startswith("==") and "," not in version:
        version = version[2:]
    source = f"@ {wanted.url}" if wanted.url else version or "any version"
    return canonicalize_name(wanted.name) + extras, source + (f"; {wanted.marker}" if wanted.marker else "")
