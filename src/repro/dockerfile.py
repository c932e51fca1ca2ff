"""Dockerfile text -> what it copies from the context, and what it needs of a builder; pure.

The parser is a port of BuildKit's own, so that this reads a Dockerfile as the builder will.
"""

from __future__ import annotations

import re
from typing import Any

from repro.errors import BadInputError
from repro.experiment import Value

URL = re.compile(r"^(https?|git|ssh|ftp)://|^git@|\.git(#|$)")
SYNTAX = re.compile(r"^#\s*syntax\s*=\s*(\S+)", re.IGNORECASE | re.MULTILINE)


class Copy(Value, frozen=True, kw_only=True):
    """A COPY or ADD that takes files from the build context."""

    line: int
    text: str
    sources: tuple[str, ...]  # relative to the context's root, wildcards as written


class Need(Value, frozen=True, kw_only=True):
    """Something that only BuildKit can do."""

    line: int
    what: str


def local_copies(text: str, build_args: dict[str, str]) -> tuple[Copy, ...]:
    """Every COPY and ADD from the context; variables are replaced where an ARG or ENV before it decides them.

    Raises:
        BadInputError: this is no Dockerfile.
    """
    found = []
    variables: dict[str, str] = {}
    for instruction in _instructions(text):
        name, arguments = instruction.name.upper(), list(instruction.args)
        if name in ("ARG", "ENV"):
            _define(variables, name, arguments, build_args)
        if name not in ("COPY", "ADD") or any(flag.startswith("--from") for flag in instruction.flags):
            continue
        inline = {heredoc.name for heredoc in instruction.heredocs}
        names = [argument for argument in arguments[:-1] if argument.lstrip("<-").strip("\"'") not in inline]
        expanded = (_expanded(each, variables) for each in names)
        sources = tuple(_normal(each) for each in expanded if not (name == "ADD" and URL.search(each)))
        if sources:
            found.append(Copy(line=instruction.start_line, text=instruction.original.strip(), sources=sources))
    return tuple(found)


def needs_buildkit(text: str) -> Need | None:
    """The first thing in a Dockerfile that the classic builder does not know; None when it can build it.

    Raises:
        BadInputError: this is no Dockerfile.
    """
    if directive := SYNTAX.match(text):
        return Need(line=1, what=f"the frontend {directive[1]} (# syntax=)")
    for instruction in _instructions(text):
        name = instruction.name.upper()
        if instruction.heredocs:
            return Need(line=instruction.start_line, what=f"a here-document in {name}")
        for flag in instruction.flags:
            option = flag.partition("=")[0]
            if option in _BUILDKIT_FLAGS.get(name, ()):
                return Need(line=instruction.start_line, what=f"{name} {option}")
    return None


# `--chmod` too: the classic builder refuses it with "the --chmod option requires BuildKit"
_BUILDKIT_FLAGS = {
    "RUN": ("--mount", "--network", "--security", "--device"),
    "COPY": ("--link", "--chmod", "--parents", "--exclude"),
    "ADD": ("--link", "--chmod", "--checksum", "--keep-git-dir", "--exclude", "--unpack"),
}


def line_of(text: str, instruction: str) -> int | None:
    """The line of the Dockerfile where an instruction stands, as a builder prints it; None when it is not found."""
    wanted = " ".join(instruction.split())
    for each in _instructions(text):
        if " ".join(each.original.split()) == wanted:
            return int(each.start_line)
    return None


def _instructions(text: str) -> list[Any]:
    from e2b_dockerfile_utils import DockerfileSyntaxError, parse_dockerfile_ast

    try:
        found = parse_dockerfile_ast(text).instructions
    except (DockerfileSyntaxError, ValueError) as error:
        raise BadInputError("the Dockerfile cannot be read", evidence=[str(error)]) from error
    if not any(each.name.upper() == "FROM" for each in found):
        raise BadInputError("the Dockerfile cannot be read: it has no FROM")
    return list(found)


def _define(variables: dict[str, str], name: str, arguments: list[str], build_args: dict[str, str]) -> None:
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if name == "ARG" and key in build_args:
            variables[key] = build_args[key]
        elif separator:
            variables[key] = value.strip("\"'")


def _expanded(word: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}|\$(\w+)", lambda match: variables.get(match[1] or match[2], match[0]), word)


def _normal(source: str) -> str:
    parts = [part for part in source.replace("\\ ", " ").split("/") if part not in ("", ".")]
    return "/".join(parts) or "."
