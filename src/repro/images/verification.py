"""An image, built twice on purpose -> whether both are the same, bit for bit, and why not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

from repro import image, report
from repro.build import buildcache, builder
from repro.display import Display, shorten
from repro.engines.engine import Engine
from repro.engines.imagefacts import ImageFacts
from repro.experiment import Value
from repro.image import How
from repro.images import sameness
from repro.images.sameness import Difference, LayerDifference
from repro.recipe.assembly import FromHost
from repro.recipe.spec import ImageSpec

APART_SECONDS = 3.0  # between the two builds: the coarsest times in files have steps of 2 seconds
Gather = Callable[[Callable[[str], None]], FromHost]
NOISE = re.compile(r"^(RUN )?(\|\d+ .*?)?/bin/sh -c (#\(nop\) )?| # buildkit$")
SHOWN = 5  # files of one cause; --json has all


class Verification(Value, frozen=True, kw_only=True):
    """What two builds of one spec gave. A tuple of two has the first build's and the second's."""

    tag: str
    spec: str
    builder: str
    identical: bool
    layers: tuple[tuple[str, ...], tuple[str, ...]]  # diff ids
    varied: tuple[str, ...]  # what was not the same in the second build, on purpose
    not_varied: tuple[str, ...]  # what this builder cannot change
    differences: tuple[LayerDifference, ...]
    present: (
        bool | None
    )  # whether the image of the spec that the engine held before is the same, too; None: it had none
    present_differences: tuple[LayerDifference, ...]  # from the first build


def verify(
    spec: ImageSpec, engine: Engine, gather: Gather, display: Display, *, logs: Path, pull_base: bool = False
) -> Verification:
    """Build twice without cache, and compare. The spec's own image is not touched, and nothing new stays.

    Args:
        spec: what to build.
        engine: where.
        gather: brings what the host gives to both builds.
        display: each build is a step of it.
        logs: folder for what the builders say.
        pull_base: ask the registry for a newer base first.

    Raises:
        BadInputError: the Dockerfile or what it installs has to change.
        EnvironmentUnfitError: the base cannot be had, or the engine cannot build.
    """
    with buildcache.left_alone(engine), image.one_at_a_time(spec, display.notice), ExitStack() as images:
        host: FromHost | None = None
        found: list[ImageFacts] = []
        begun: list[float] = []
        for number in (1, 2):
            if begun:
                time.sleep(APART_SECONDS)
            begun.append(time.monotonic())
            how = How(no_cache=True, pull_base=pull_base and number == 1, trial=True, varied=number == 2)
            log = logs / f"verify-{spec.digest[:16]}-{number}.log"
            with display.step(f"build {number}") as step:
                host = host or gather(step.say)
                made = images.enter_context(image.built(spec, engine, host, how, say=step.say, build_log=log))
                step.detail = report.short(made.id)
            found.append(made)
        first, second = found
        with display.step("compare") as step:
            present = image.present(spec, engine.image)
            differences = _compared(engine, first, second)
            step.detail = f"{len(differences)} of {report.many(len(first.layers), 'layer')} differ"
            beside = _compared(engine, first, present) if present and not differences else ()
    varied, not_varied = builder.variations(engine)
    return Verification(
        tag=spec.tag,
        spec=spec.digest,
        builder=(builder.buildx() or "") if builder.name_for(engine) == "buildx" else builder.name_for(engine),
        identical=not differences,
        layers=(first.layers, second.layers),
        varied=(f"time ({begun[1] - begun[0]:.0f} s later)", *varied),
        not_varied=not_varied,
        differences=differences,
        present=present.layers in (first.layers, second.layers) if present else None,
        present_differences=beside,
    )


def _compared(engine: Engine, first: ImageFacts, second: ImageFacts) -> tuple[LayerDifference, ...]:
    if first.layers == second.layers:
        return ()
    known = {one for one, other in zip(first.layers, second.layers, strict=False) if one == other}
    return sameness.compare(sameness.read(engine.save(first.id), known), sameness.read(engine.save(second.id), known))


# for people -----------------------------------------------------------------------------------------------------


def text(verification: Verification) -> str:
    """The answer: the layers that both have, or the files that differ, by cause."""
    lines = [f"{verification.tag}  {_verdict(verification)}"]
    if verification.identical:
        lines += [f"  layer {number}  {layer}" for number, layer in enumerate(verification.layers[0], 1)]
    for layer in verification.differences:
        lines += _layer_text(layer)
    lines += [f"varied      {', '.join(verification.varied)}"]
    lines += [f"not varied  {', '.join(verification.not_varied)}"] if verification.not_varied else []
    lines += list(_present_text(verification))
    return "\n".join(lines)


def _verdict(verification: Verification) -> str:
    layers = report.many(len(verification.layers[0]), "layer")
    if verification.identical:
        return f"repeatable: two builds gave the same {layers}, bit for bit"
    return f"not repeatable: {len(verification.differences)} of {layers} differ between two builds"


def _layer_text(layer: LayerDifference, alone: tuple[str, str] = ("first", "second")) -> Iterator[str]:
    count = f"{len(layer.differences):,} of {report.many(layer.paths, 'path')}"
    yield f"  layer {layer.number}  {count} differ  {_instruction(layer.made_by)}"
    if not layer.differences:
        yield "    no file does: only their order in the layer, or the form of its tar"
    by_cause = sorted(layer.differences, key=lambda each: (each.cause, each.path))
    groups = [list(group) for _, group in groupby(by_cause, key=lambda each: each.cause)]
    for group in sorted(groups, key=lambda each: (-len(each), each[0].cause)):
        yield f"    {report.many(len(group), 'path')}: {group[0].cause}"
        yield from (f"      {each.path}  ({_what(each, alone)})" for each in group[:SHOWN])
        if len(group) > SHOWN:
            yield f"      and {len(group) - SHOWN:,} more (--json lists all)"
        yield f"      try  {group[0].remedy}"


def _instruction(made_by: str) -> str:
    """What made a layer, as in the Dockerfile: builders add words of their own."""
    return shorten(NOISE.sub("", made_by)).strip()


def _what(difference: Difference, alone: tuple[str, str]) -> str:
    if "there" in difference.what:
        return f"only in the {alone[0] if difference.what['there'][0] else alone[1]}"
    return ", ".join(difference.what)


def _present_text(verification: Verification) -> Iterator[str]:
    if verification.present is None:
        return
    if verification.present:
        yield "present     the image that is here has these layers, too"
    elif not verification.identical:
        yield "present     the image that is here has other layers than both"
    else:
        yield "present     the image that is here has other layers: made by another builder, or of other packages"
        for layer in verification.present_differences:
            yield from _layer_text(layer, ("new ones", "one that is here"))
