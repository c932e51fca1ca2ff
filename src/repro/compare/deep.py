"""The images of two runs, as an engine has them -> the files in which they differ. It reads both images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from repro.compare.layers import Difference, Weight
from repro.engines.engine import Engine
from repro.errors import EnvironmentUnfitError
from repro.images import sameness
from repro.record import ImageUsed, shown


def files(engine: Engine, before: ImageUsed, after: ImageUsed, say: Callable[[str], None]) -> tuple[Difference, ...]:
    """Files of the images that are not the same; times alone decide nothing.

    Raises:
        EnvironmentUnfitError: one of them is not on this engine.
    """
    if before.id == after.id:
        return ()
    found = []
    for image in (before, after):
        facts = engine.image(image.id)
        if facts is None:
            raise EnvironmentUnfitError(
                f"the image {image.tag} ({image.id[:19]}) is not on this engine, so its files cannot be compared",
                hints=["without --deep its inputs and packages are", "`repro rebuild --pull`, if a registry has it"],
            )
        found.append(facts)
    known = {one for one, other in zip(found[0].layers, found[1].layers, strict=False) if one == other}
    read = []
    for facts in found:
        say(f"reading {facts.id[:19]}")
        read.append(sameness.read(engine.save(facts.id), known))
    return tuple(_files(read[0], read[1]))


def _files(before: tuple[sameness.Layer, ...], after: tuple[sameness.Layer, ...]) -> Iterator[Difference]:
    """Of the file systems that a run sees, in which later layers stand before earlier ones."""
    layers = sameness.compare(before, after)
    seen: set[str] = set()
    for layer in reversed(layers):
        for each in layer.differences:
            if each.path in seen:
                continue
            seen.add(each.path)
            told = f" ({', '.join(each.what)})"
            if "there" in each.what:
                told = " is gone" if each.what["there"][0] else " is new"
            was, now = each.what.get("content", (None, None))
            yield Difference(
                what=f"/{shown(each.path)}{told}",
                before=_short(was),
                after=_short(now),
                kind="image",
                weight=Weight.NONE if set(each.what) == {"time"} else Weight.LIKELY,
            )


def _short(content: str | None) -> str | None:
    return f"sha256:{content[:12]}" if content else None
