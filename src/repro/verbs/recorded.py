"""What the verbs on recorded runs share: which run is meant, the machine now, where its ingredients are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from repro import report
from repro.display import Display
from repro.project import Project
from repro.record import Host, Record
from repro.verdict import Ingredient

if TYPE_CHECKING:
    from repro.compare.sides import Side
    from repro.engines.engine import Engine

WHICH = "run id, MLflow run id, a unique prefix, latest, or a bundle that `repro export` wrote"


def place(wanted: str) -> Project:
    """The project around this folder; for a bundle, this folder itself where there is none."""
    if not Path(wanted).is_file():
        return Project.find(Path.cwd())
    from repro.bundle import importing

    return importing.project_at(Path.cwd())


def chosen(project: Project, wanted: str, display: Display) -> Side:
    """The run that is meant: by its name, or the one in a bundle, which is imported first."""
    from repro.compare.sides import Side
    from repro.tracking.lookup import find

    if Path(wanted).is_file():
        from repro.bundle import importing

        with display.step("import") as step:
            wanted = step.detail = importing.read(Path(wanted).absolute(), project, step.say)
    record, folder = find(project, wanted)
    return Side(record=record, folder=folder)


def host_now(engine: Engine, record: Record) -> Host:
    """The machine, as a run of now would record it."""
    from repro.project import user_name
    from repro.running import machine, plan

    facts = engine.facts()
    gpus = record.started is not None and record.started.gpus != "none"
    return plan.host(facts, machine.of(facts, engine.host_url, gpus=gpus), user_name())


def row(name: str, first: str, more: str) -> str:
    return f"{name:<8}  {first}" + (f"  {more}" if more else "")


def ingredients_text(found: Sequence[Ingredient]) -> Iterator[str]:
    """Each ingredient: what was recorded, where it was found, what will be used."""
    for each in found:
        name = f"{each.kind} {each.name}".rstrip()
        yield f"{name:<8}  {report.LONG_DIGEST.sub(chr(92) + '1', each.recorded)}"
        for place in each.found:
            yield f"          {'uses' if place == each.use else 'also'} {place}"
        if not each.use:
            yield "          LOST"
        if each.remark:
            yield f"          note {each.remark}"
