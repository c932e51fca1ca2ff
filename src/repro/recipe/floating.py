"""ImageSpec -> what of it is still open: names whose meaning somebody else may change until it is built again; pure."""

from __future__ import annotations

import re

from repro.build import context, dockerfile
from repro.recipe.spec import ImageSpec
from repro.report import many

EXACT = re.compile(r"(===?)\s*[^\s,*;]+\s*(;|$)|\s@\s")  # one version, or one file


def pieces(spec: ImageSpec, built_on: str | None = None) -> tuple[str, ...]:
    """What floats, in few words each, as `base`, `3 packages`, `apt-get install`; () when all of it is pinned.

    Args:
        spec: with what the lock pins.
        built_on: what an image that is there was built on, its repo digest or id; None where there is none.
    """
    content, arguments = spec.dockerfile_text, spec.arguments(spec.base_reference)
    urls = dockerfile.unpinned_urls(content, arguments, spec.target)  # the builder fetches them, whatever steps may do
    commands = () if spec.network == "none" else dockerfile.network_commands(content, spec.target)
    found = [*_images(spec, built_on), *_packages(spec), *commands, *([many(len(urls), "URL")] if urls else [])]
    return tuple(found)


def text(found: tuple[str, ...]) -> str:
    """One line for people."""
    return f"floating: {', '.join(found)}"


def _images(spec: ImageSpec, built_on: str | None) -> list[str]:
    open_ones = set()
    for reference in spec.references():
        name = reference.image
        if "@sha256:" in name or name in spec.pins:
            continue
        if name in spec.expected and (name != spec.base_reference or built_on in (None, spec.expected[name])):
            continue
        open_ones.add(name)
    others = len(open_ones - {spec.base_reference})
    return (["base"] if spec.base_reference in open_ones else []) + ([many(others, "other image")] if others else [])


def _packages(spec: ImageSpec) -> list[str]:
    if spec.packages is not None:
        return []
    files = [file for file in spec.files if file.text and file.path != spec.dockerfile]
    wanted = [line for file in files for line in context.requirement_lines(file.content.decode())]
    if not wanted or all("--hash=" in line for line in wanted):
        return []
    loose = sum(not EXACT.search(line) for line in wanted)
    return [many(loose, "package")] if loose else ["what the packages depend on"]
