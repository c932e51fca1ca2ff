"""Dockerfile text -> what it takes from the context, and what it needs of a builder; pure.

The parser is a port of BuildKit's own, so that this reads a Dockerfile as the builder will.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from repro.errors import BadInputError
from repro.experiment import Value

URL = re.compile(r"^(https?|git|ssh|ftp)://|^git@")
DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(\S+)")
FETCHES = re.compile(
    r"\b((?:apt-get|apt|apk|dnf|yum|conda|mamba|npm)\b[^\n;&|]*?\b(?:install|add)|curl|wget|git clone)\b"
    r"|\b(pip3? install)\b(?![^\n;&|]*(?:\s-r|--requirement|--no-index|\s\.|\$))"  # not a file, nor what nobody knows
)
PREDEFINED = re.compile(r"(TARGET|BUILD)(PLATFORM|OS|ARCH|VARIANT)|.*_proxy|SOURCE_DATE_EPOCH", re.IGNORECASE)

# `--chmod` too: the classic builder refuses it with "the --chmod option requires BuildKit"
BUILDKIT_FLAGS = {
    "RUN": ("--mount", "--network", "--security", "--device"),
    "COPY": ("--link", "--chmod", "--parents", "--exclude"),
    "ADD": ("--link", "--chmod", "--checksum", "--keep-git-dir", "--exclude", "--unpack"),
}


class Copy(Value, frozen=True, kw_only=True):
    """A COPY, ADD or `RUN --mount=type=bind` that takes files from the build context."""

    line: int
    text: str
    sources: tuple[str, ...]  # relative to the context's root, wildcards as written; what is not known keeps its `$`
    kept: bool  # it stays in the image: a COPY or ADD of the stage that becomes it, or of one that this stands on
    copies: bool = True  # False: of a RUN, which only sees it


class Base(Value, frozen=True, kw_only=True):
    """A FROM: what it names, with variables replaced; it may be an earlier stage."""

    line: int
    text: str
    image: str


class Reference(Value, frozen=True, kw_only=True):
    """An image from outside: of a FROM, a `COPY --from=`, a `RUN --mount=from=`, or `# syntax=`."""

    line: int
    kind: str  # FROM, COPY, RUN or syntax
    written: str  # in the text, with its variables
    image: str  # with them replaced


class Need(Value, frozen=True, kw_only=True):
    """Something that only BuildKit can do."""

    line: int
    what: str


def local_copies(text: str, build_args: Mapping[str, str], target: str | None = None) -> tuple[Copy, ...]:
    """What is taken from the context; variables are replaced where an ARG or ENV before it decides them.

    Stages behind `target` are left out, as a builder leaves them out.

    Raises:
        BadInputError: this is no Dockerfile.
    """
    found = []
    scope = _Scope(build_args)
    wanted = list(_until(target, _instructions(text)))
    remaining, stage = _stages_of_image(wanted), -1
    for instruction in wanted:
        stage += instruction.name == "FROM"
        scope.enter(instruction)
        sources = tuple(_normal(scope.expanded(source)) for source in _sources(instruction))
        sources = tuple(each for each in sources if instruction.name != "ADD" or not URL.search(each))
        if sources:
            copies = instruction.name != "RUN"
            line, original = instruction.start_line, instruction.original.strip()
            found.append(
                Copy(line=line, text=original, sources=sources, kept=copies and stage in remaining, copies=copies)
            )
    return tuple(found)


def bases(text: str, build_args: Mapping[str, str], target: str | None = None) -> tuple[Base, ...]:
    """What the stages up to `target` start from, at least one.

    Raises:
        BadInputError: this is no Dockerfile.
    """
    found = []
    scope = _Scope(build_args)
    for instruction in _until(target, _instructions(text)):
        if instruction.name == "FROM":
            image = scope.expanded_before_stages(instruction.args[0])
            found.append(Base(line=instruction.start_line, text=instruction.original.strip(), image=image))
        scope.enter(instruction)
    return tuple(found)


def references(text: str, build_args: Mapping[str, str], target: str | None = None) -> tuple[Reference, ...]:
    """The images from outside that a build up to `target` takes something from, in the order of the text.

    Raises:
        BadInputError: this is no Dockerfile.
    """
    found = [
        Reference(line=number, kind="syntax", written=value, image=value)
        for number, name, value in _directives(text)
        if name == "syntax"
    ]
    stages: set[str] = set()
    scope = _Scope(build_args)
    for instruction in _until(target, _instructions(text)):
        for written in _taken_from(instruction):
            # of a FROM and the options of a RUN variables are replaced; a COPY takes its --from as it is written
            expanded = scope.expanded_before_stages(written) if instruction.name == "FROM" else scope.expanded(written)
            if expanded.lower() not in stages and expanded != "scratch" and not expanded.isdigit():
                line = instruction.start_line
                found.append(Reference(line=line, kind=instruction.name, written=written, image=expanded))
        if instruction.name == "FROM" and len(instruction.args) > 2:
            stages.add(instruction.args[2].lower())
        scope.enter(instruction)
    return tuple(found)


def unpinned_urls(text: str, build_args: Mapping[str, str], target: str | None = None) -> tuple[str, ...]:
    """What an ADD fetches without saying which bytes it must be.

    Raises:
        BadInputError: this is no Dockerfile.
    """
    found = []
    scope = _Scope(build_args)
    for instruction in _until(target, _instructions(text)):
        scope.enter(instruction)
        if instruction.name == "ADD" and not any(flag.startswith("--checksum=") for flag in instruction.flags):
            sources = (scope.expanded(source) for source in instruction.args[:-1])
            found += [source for source in sources if URL.search(source)]
    return tuple(found)


def network_commands(text: str, target: str | None = None) -> tuple[str, ...]:
    """Programs in RUN instructions that bring what a network holds on that day, each once: apt-get, curl, ...

    A hint and no proof: a script can fetch by other means.

    Raises:
        BadInputError: this is no Dockerfile.
    """
    found: dict[str, None] = {}
    for instruction in _until(target, _instructions(text)):
        if instruction.name == "RUN" and "--network=none" not in instruction.flags:
            lines = [instruction.original, *(each.content for each in instruction.heredocs)]
            for tool, pip in FETCHES.findall("\n".join(lines).replace("\\\n", " ")):
                words = (tool or pip).split()
                found.setdefault(" ".join(words if len(words) < 3 else [words[0], words[-1]]))
    return tuple(found)


def pinned(text: str, references: Iterable[Reference], pins: Mapping[str, str]) -> str:
    """The text with each reference that has a pin replaced by it, on its own lines; no line moves."""
    lines = text.split("\n")
    for reference in references:
        pin = pins.get(reference.image)
        if pin is None:
            continue
        before = r"from=[\"']?" if reference.kind in ("COPY", "RUN") else r"(?<![\w./:@-])"
        for number in range(reference.line - 1, len(lines)):  # an instruction may go on over several lines
            if found := re.search(rf"{before}({re.escape(reference.written)})(?![\w./:@-])", lines[number]):
                lines[number] = lines[number][: found.start(1)] + pin + lines[number][found.end(1) :]
                break
    return "\n".join(lines)


def needs_buildkit(text: str) -> Need | None:
    """The first thing in a Dockerfile that the classic builder does not know; None when it can build it.

    Raises:
        BadInputError: this is no Dockerfile.
    """
    for number, name, value in _directives(text):
        if name == "syntax":
            return Need(line=number, what=f"the frontend {value} (# syntax=)")
    for instruction in _instructions(text):
        if instruction.heredocs:
            return Need(line=instruction.start_line, what=f"a here-document in {instruction.name}")
        for flag in instruction.flags:
            option = flag.partition("=")[0]
            if option in BUILDKIT_FLAGS.get(instruction.name, ()):
                return Need(line=instruction.start_line, what=f"{instruction.name} {option}")
    return None


def podman_lacks(text: str, *, heredocs: bool) -> Need | None:
    """The first thing in a Dockerfile that Podman's Docker API cannot do; `heredocs`: it can do those.

    Raises:
        BadInputError: this is no Dockerfile.
    """
    for instruction in _instructions(text):
        if instruction.heredocs and not heredocs:
            return Need(line=instruction.start_line, what=f"a here-document in {instruction.name}")
        for flag in instruction.flags:
            if flag.partition("=")[0] == "--link" or re.match(r"--mount=(.*,)?type=(secret|ssh)(,|$)", flag):
                return Need(line=instruction.start_line, what=f"{instruction.name} {flag}")
    return None


def line_of_step(text: str, step: int) -> int | None:
    """The line of the step that the classic builder calls `Step N/M`: it counts every instruction."""
    instructions = _instructions(text)
    return int(instructions[step - 1].start_line) if 0 < step <= len(instructions) else None


def line_of(text: str, instruction: str) -> int | None:
    """The line where an instruction stands, by its text as BuildKit prints it; None when that is not found."""
    wanted = " ".join(instruction.split())
    found = (each.start_line for each in _instructions(text) if " ".join(each.original.split()) == wanted)
    return next(found, None)


def _directives(text: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        directive = DIRECTIVE.match(line)
        if directive is None:  # they stand in the first lines, or they are comments
            return
        yield number, directive[1].lower(), directive[2]


@lru_cache(maxsize=4)  # hash, lock, counting and checks all ask about the same text; nobody changes what is found
def _instructions(text: str) -> tuple[Any, ...]:
    from e2b_dockerfile_utils import DockerfileSyntaxError, parse_dockerfile_ast

    try:
        found = parse_dockerfile_ast(text).instructions
    except (DockerfileSyntaxError, ValueError) as error:
        raise BadInputError("the Dockerfile cannot be read", evidence=[str(error)]) from error
    if not any(each.name == "FROM" for each in found):
        raise BadInputError("the Dockerfile cannot be read: it has no FROM")
    for each in found:
        if each.name in ("COPY", "ADD") and len(each.args) < 2:  # the parser does not count; the builders do
            evidence = f"line {each.start_line}: {each.original}"
            raise BadInputError(f"the Dockerfile cannot be read: {each.name} without a target", evidence=[evidence])
    return tuple(found)


def _until(target: str | None, instructions: Sequence[Any]) -> Iterator[Any]:
    stage, wanted = -1, False
    for each in instructions:
        if each.name == "FROM":
            if wanted:
                return
            stage += 1
            name = each.args[2].lower() if len(each.args) > 2 else ""
            wanted = target is not None and target.lower() in (name, str(stage))
        yield each


def _sources(instruction: Any) -> Iterator[str]:
    from e2b_dockerfile_utils import parse_heredoc

    if instruction.name in ("COPY", "ADD"):
        if not any(flag.startswith("--from=") for flag in instruction.flags):
            yield from (word for word in instruction.args[:-1] if not parse_heredoc(word))
    elif instruction.name == "RUN":
        for flag in instruction.flags:
            yield from _mounted(flag)


def _stages_of_image(instructions: Sequence[Any]) -> set[int]:
    """The last stage, and those that it stands on: what they hold is in the image."""
    names: dict[str, int] = {}
    parents: list[int | None] = []
    for each in instructions:
        if each.name == "FROM":
            parents.append(names.get(each.args[0].lower()))
            if len(each.args) > 2:
                names[each.args[2].lower()] = len(parents) - 1
    found: set[int] = set()
    stage: int | None = len(parents) - 1
    while stage is not None:
        found.add(stage)
        stage = parents[stage]
    return found


def _taken_from(instruction: Any) -> Iterator[str]:
    """What an instruction takes files from that may be an image: as written."""
    if instruction.name == "FROM":
        yield instruction.args[0]
    for flag in instruction.flags:
        name, _, options = flag.partition("=")
        if name == "--from" and instruction.name == "COPY":
            yield options
        elif name == "--mount" and instruction.name == "RUN":
            pairs = dict(option.partition("=")[::2] for option in options.split(","))
            if "from" in pairs:
                yield pairs["from"]


def _mounted(flag: str) -> Iterator[str]:
    """The source of `--mount=type=bind,source=...`, unless it comes from another stage or image."""
    name, _, options = flag.partition("=")
    if name == "--mount":
        pairs = dict(option.partition("=")[::2] for option in options.split(","))
        source = pairs.get("source") or pairs.get("src")
        if pairs.get("type", "bind") == "bind" and "from" not in pairs and source:
            yield source


class _Scope:
    """The variables that are known at a point of a Dockerfile; each stage has its own."""

    def __init__(self, build_args: Mapping[str, str]) -> None:
        self._given = build_args
        self._global: dict[str, str] = {}  # of ARG before the first FROM
        self._args = self._global
        self._env: dict[str, str] = {}  # wins over ARG

    def enter(self, instruction: Any) -> None:
        """Take note of an instruction's variables."""
        if instruction.name == "FROM":
            self._args, self._env = {}, {}
        elif instruction.name == "ENV":
            triples = zip(instruction.args[::3], instruction.args[1::3], strict=False)  # key, value, "=" or ""
            self._env |= {key: self.expanded(value) for key, value in triples}
        elif instruction.name == "ARG":
            for argument in instruction.args:
                key, given, default = argument.partition("=")
                if key in self._given:
                    self._args[key] = self._given[key]
                elif given:
                    self._args[key] = self.expanded(default)
                elif not PREDEFINED.match(key):  # a builder gives these values that we do not know
                    self._args[key] = self._global.get(key, "")

    def expanded(self, word: str) -> str:
        """A word as the builder sees it; what depends on unknown variables keeps its `$`."""
        return _expanded(word, {**self._args, **self._env})

    def expanded_before_stages(self, word: str) -> str:
        """A word of a FROM, for which the arguments before the first one count."""
        return _expanded(word, self._global)


def _expanded(word: str, variables: dict[str, str]) -> str:
    from e2b_dockerfile_utils import ShellLex

    try:
        return str(ShellLex("\\", env=variables).process_word(word))
    except ValueError:
        return word


def _normal(source: str) -> str:
    if URL.search(source):
        return source
    parts = [part for part in source.split("/") if part not in ("", ".")]
    return "/".join(parts) or "."
