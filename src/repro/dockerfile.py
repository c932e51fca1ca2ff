"""Dockerfile text -> what it takes from the context, and what it needs of a builder; pure.

The parser is a port of BuildKit's own, so that this reads a Dockerfile as the builder will.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from repro.errors import BadInputError
from repro.experiment import Value

URL = re.compile(r"^(https?|git|ssh|ftp)://|^git@")
DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(\S+)")
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


class Base(Value, frozen=True, kw_only=True):
    """A FROM: what it names, with variables replaced; it may be an earlier stage."""

    line: int
    text: str
    image: str


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
    for instruction in _until(target, _instructions(text)):
        scope.enter(instruction)
        sources = tuple(_normal(scope.expanded(source)) for source in _sources(instruction))
        sources = tuple(each for each in sources if instruction.name != "ADD" or not URL.search(each))
        if sources:
            found.append(Copy(line=instruction.start_line, text=instruction.original.strip(), sources=sources))
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


def needs_buildkit(text: str) -> Need | None:
    """The first thing in a Dockerfile that the classic builder does not know; None when it can build it.

    Raises:
        BadInputError: this is no Dockerfile.
    """
    for number, line in enumerate(text.splitlines(), 1):
        directive = DIRECTIVE.match(line)
        if directive is None:  # directives stand in the first lines, or they are comments
            break
        if directive[1].lower() == "syntax":
            return Need(line=number, what=f"the frontend {directive[2]} (# syntax=)")
    for instruction in _instructions(text):
        if instruction.heredocs:
            return Need(line=instruction.start_line, what=f"a here-document in {instruction.name}")
        for flag in instruction.flags:
            option = flag.partition("=")[0]
            if option in BUILDKIT_FLAGS.get(instruction.name, ()):
                return Need(line=instruction.start_line, what=f"{instruction.name} {option}")
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


def _instructions(text: str) -> list[Any]:
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
    return list(found)


def _until(target: str | None, instructions: list[Any]) -> Iterator[Any]:
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
