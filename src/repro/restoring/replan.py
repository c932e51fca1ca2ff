"""Record + ingredients found again -> Plan of the same run once more; pure. What was recorded is taken as it is."""

from __future__ import annotations

import msgspec

from repro import __version__
from repro.experiment import Experiment
from repro.record import Record
from repro.running import plan as planning
from repro.running.plan import Circumstances, Gpus, Ingredients, Plan

OURS = "REPRO_"  # of the environment: where things are in the container, which follows from this version's mounts


def decide(record: Record, experiment: Experiment, ingredients: Ingredients, circumstances: Circumstances) -> Plan:
    """The run of a record once more.

    Command, configuration, environment, network and limits are those of the record, whatever this version or the
    project would choose now. New are who runs it, where, when and on what.

    Args:
        record: of the run.
        experiment: its frozen configuration, as this version understands it.
        ingredients: what was found or made for it.
        circumstances: time, place and person of now.
    """
    before = record.planned
    host = planning.host(ingredients.engine, ingredients.machine, circumstances.user)
    gpus = gpu_request(record, len(host.gpus))
    planned = msgspec.structs.replace(
        before,
        run=circumstances.run,
        created=circumstances.created,
        repro=__version__,
        project=circumstances.project,
        argv=circumstances.argv,
        code_prefix=ingredients.code_prefix,
        image=ingredients.image,
        data=ingredients.data,
        host=host,
        user=planning.user(experiment, ingredients.engine, circumstances),
        env=environment(before.env, planning.container_env(experiment, ingredients, circumstances)),
        tracking_uri=circumstances.tracking_uri,
        notices=ingredients.notices,
        helper=planning.helper(),
        reproduces=circumstances.reproduces,
        repeats=None,
    )
    # on the CPU, where it had GPUs, it would be another run
    return planning.complete(planned, experiment, ingredients, circumstances, gpus, cpu_fallback=False)


def environment(recorded: dict[str, str], ours: dict[str, str]) -> dict[str, str]:
    """The recorded environment, with those variables of today that say where things are."""
    kept = {name: value for name, value in recorded.items() if not name.startswith(OURS)}
    return kept | {name: value for name, value in ours.items() if name.startswith(OURS)}


def gpu_request(record: Record, here: int) -> Gpus:
    """The GPUs to ask for: as many as the run had; `here`: how many this machine is known to have, 0 for unknown.

    Ids and numbers are those of the machine that it ran on, so that of several GPUs the first ones are taken.
    """
    had = record.started.gpus if record.started else "none"
    known = len(record.planned.host.gpus)
    if had == "none":
        return ()
    if had == "all":
        return known if 0 < known < here else -1
    if "id " in record.planned.gpus_asked:
        ids = tuple(had.split(","))
        same = {each.uuid for each in record.planned.host.gpus} & set(ids)
        return ids if same or here == known else len(ids)
    return int(had) if had.isdecimal() else len(had.split(","))
