"""Two runs -> what differs of all that went into them, layer by layer, causes first.

Only records and the texts in the run folders are read, and git is asked if the code differs: no engine, no network.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

from repro.compare import coding
from repro.compare.sides import Side
from repro.experiment import Value
from repro.images import inventory
from repro.record import DatasetUsed, Gpu, Host, Planned, RunFolder

THREADS = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "TF_NUM_INTRAOP", "TF_NUM_INTEROP")
THREAD_VARIABLES = {f"{name}_NUM_THREADS" for name in THREADS if not name.startswith("TF_")} | {
    f"{name}_THREADS" for name in THREADS if name.startswith("TF_")
}
# of the environment: they name the run, or follow from the seed
FOLLOWING = {"REPRO_RUN", "PYTHONHASHSEED"} | THREAD_VARIABLES
# of the configuration: told by another layer, in a truer form
ELSEWHERE = {"env", "threads", "data", "image", "build", "gpus", "resources", "network", "user"}
IDLE = {"tracking", "outputs", "description"}  # decide nothing that is computed
SELDOM = {"name", "secrets"}
# these say what of all that comes out is a result
PROMISES = {"outputs.ignore", "outputs.by_products", "outputs.by_product_metrics"}


class Weight(IntEnum):
    """Whether a difference can explain that results differ."""

    NONE = 0
    UNLIKELY = 1
    LIKELY = 2


class Difference(Value, frozen=True, kw_only=True):
    """One thing that is another one."""

    what: str
    before: str | None = None  # None: it was not there
    after: str | None = None
    detail: tuple[str, ...] = ()  # lines of a text's difference
    weight: Weight = Weight.LIKELY
    kind: str = ""  # that the explanation ranks it by: seed, code, config, data, image, environment, threads, ...

    @property
    def text(self) -> str:
        """In one line."""
        if self.before is None and self.after is None:
            return self.what
        if self.before is None:
            return f"{self.what}  added {self.after}"
        if self.after is None:
            return f"{self.what}  removed {self.before}"
        return f"{self.what}  {self.before} -> {self.after}"


class Layer(Value, frozen=True, kw_only=True):
    """One of the things that a run is made of."""

    name: str
    differences: tuple[Difference, ...] = ()
    unknown: str = ""  # why nobody can tell whether it is the same


def of(before: Side, after: Side, root: Path | None) -> tuple[Layer, ...]:
    """All layers of what went in, in causal order; `root`: a folder in the repository that has the code."""
    was, now = before.record.planned, after.record.planned
    lock, image = _image(was, now, before.folder, after.folder)
    return (
        _code(was, now, root),
        Layer(name="config", differences=tuple(_config(was.config, now.config))),
        Layer(name="data", differences=tuple(_data(was.data, now.data))),
        lock,
        image,
        Layer(name="environment", differences=tuple(_environment(was, now))),
        _host(before, after),
    )


def _changed(what: str, pair: Iterable[Any], kind: str, weight: Weight = Weight.LIKELY) -> Iterator[Difference]:
    before, after = pair
    if before != after:
        yield Difference(what=what, before=_shown(before), after=_shown(after), kind=kind, weight=weight)


def _shown(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


# code ------------------------------------------------------------------------------------------------------------


def _code(was: Planned, now: Planned, root: Path | None) -> Layer:
    if (was.code.tree, was.code_prefix) == (now.code.tree, now.code_prefix):
        return Layer(name="code")
    found = coding.changes(root, was, now) if root else None
    if found is None:
        commits = Difference(what="commit", before=was.code.commit[:12], after=now.code.commit[:12], kind="code")
        return Layer(name="code", differences=(commits,))
    return Layer(
        name="code",
        differences=tuple(
            Difference(
                what=change.path,
                before=None if change.status == "A" else change.before,
                after=None if change.status == "D" else change.after,
                detail=change.lines,
                weight=Weight(change.weight),
                kind="code",
            )
            for change in found
        ),
    )


# configuration ---------------------------------------------------------------------------------------------------


def _config(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    before, after = dict(_flat(was)), dict(_flat(now))
    for key in sorted({*before, *after}, key=lambda key: (key != "seed", not key.startswith("params."), key)):
        group = key.partition(".")[0]
        if group in ELSEWHERE or (key in before and key in after and _equal(before[key], after[key])):
            continue
        yield Difference(
            what=key,
            before=json.dumps(before[key], ensure_ascii=False) if key in before else None,
            after=json.dumps(after[key], ensure_ascii=False) if key in after else None,
            kind="seed" if key == "seed" else "promises" if key in PROMISES else "config",
            weight=_weight(key, group),
        )


def _weight(key: str, group: str) -> Weight:
    if key in PROMISES or group in SELDOM:
        return Weight.UNLIKELY
    return Weight.NONE if group in IDLE else Weight.LIKELY


def _equal(one: Any, other: Any) -> bool:
    """1, 1.0 and true are three things to a program."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, each in value.items():
        if isinstance(each, dict) and each:
            yield from _flat(each, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", each


# data ------------------------------------------------------------------------------------------------------------


def _data(was: Iterable[DatasetUsed], now: Iterable[DatasetUsed]) -> Iterator[Difference]:
    before, after = ({dataset.name: dataset for dataset in each} for each in (was, now))
    for name in sorted({*before, *after}):
        one, other = before.get(name), after.get(name)
        if one is None or other is None:
            yield from _changed(name, (one and one.digest[:12], other and other.digest[:12]), "data")
        elif one.digest != other.digest:
            yield from _dataset(name, one, other)


def _dataset(name: str, was: DatasetUsed, now: DatasetUsed) -> Iterator[Difference]:
    before, after = ({file.path: file.sha256 for file in each.files} for each in (was, now))
    names = [path for path in sorted({*before, *after}) if before.get(path) != after.get(path)]
    for path in names:
        one, other = before.get(path), after.get(path)
        pair = (digest and f"sha256:{digest[:12]}" for digest in (one, other))
        yield from _changed(f"{name}/{path}", pair, "data")
    if not names:
        yield from _changed(name, (was.digest[:12], now.digest[:12]), "data")


# lock and image --------------------------------------------------------------------------------------------------


def _image(was: Planned, now: Planned, before: RunFolder, after: RunFolder) -> tuple[Layer, Layer]:
    """What decided the images, and what is in them. Equal layers and settings are the same, whatever made them."""
    one, other = was.image, now.image
    if one.id == other.id:
        return Layer(name="lock"), Layer(name="image")
    parts = [(each.content, each.settings, each.platform) for each in (one, other)]
    same_content = bool(one.content) and parts[0] == parts[1]
    weight = Weight.UNLIKELY if same_content else Weight.LIKELY
    pins: list[Difference] = []
    rest: list[Difference] = []
    if one.spec != other.spec:
        for change in _inputs(before, after):
            told = Difference(
                what=" ".join(
                    filter(None, [f"{change.input}:{change.line}" if change.line else change.input, change.what])
                ),
                before=change.before,
                after=change.after,
                kind="image",
                weight=weight,
            )
            (pins if change.input == "repro.lock" else rest).append(told)
    if one.spec == other.spec:
        rest += _changed("base", (one.base_resolved, other.base_resolved), "image", weight)
    if not same_content:
        rest += _packages(before, after)
    if not pins and not rest:
        why = "the same content" if same_content else "other content; what of it is not recorded"
        told_weight = Weight.NONE if same_content and one.spec == other.spec else weight
        rest.append(
            Difference(
                what=f"image ({why})", before=_short(one.id), after=_short(other.id), kind="image", weight=told_weight
            )
        )
    return Layer(name="lock", differences=tuple(pins)), Layer(name="image", differences=tuple(rest))


def _short(image: str) -> str:
    return image[: len("sha256:") + 12]


def _inputs(before: RunFolder, after: RunFolder) -> Iterator[Any]:
    from repro.recipe import explain, inputs

    texts = []
    for folder in (before, after):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            texts.append((folder.inputs / "image-inputs.json").read_text(encoding="utf-8"))
    if len(texts) == 2 and (was := inputs.read(texts[0])) and (now := inputs.read(texts[1])):
        yield from explain.changes(was, now)


def _packages(before: RunFolder, after: RunFolder) -> Iterator[Difference]:
    was, now = inventory.read(before.packages), inventory.read(after.packages)
    if was and now:
        for line in inventory.differences(was, now):
            yield Difference(what=line, kind="packages")


# environment and host --------------------------------------------------------------------------------------------


def _environment(was: Planned, now: Planned) -> Iterator[Difference]:
    threads = [{value for name, value in each.env.items() if name in THREAD_VARIABLES} for each in (was, now)]
    if any(was.env.get(name) != now.env.get(name) for name in THREAD_VARIABLES):
        yield from _changed("threads", (", ".join(sorted(each)) or None for each in threads), "threads")
    names = {*was.env, *now.env} - FOLLOWING
    if was.config.get("seed") == now.config.get("seed"):  # else it follows
        names.add("PYTHONHASHSEED")
    for name in sorted(names):
        yield from _changed(name, (was.env.get(name), now.env.get(name)), "environment")
    limits = [each.config.get("resources") or {} for each in (was, now)]
    yield from _changed("resources.cpus", (each.get("cpus") for each in limits), "threads")
    for name in sorted({*limits[0], *limits[1]} - {"cpus"}):
        pair = (each.get(name) for each in limits)
        yield from _changed(f"resources.{name}", pair, "environment", Weight.UNLIKELY)
    yield from _changed("network", (was.network, now.network), "environment")
    yield from _changed("user", (was.user, now.user), "environment", Weight.UNLIKELY)
    yield from _changed("repro", (was.repro, now.repro), "environment", Weight.UNLIKELY)
    if was.helper and now.helper:
        yield from _changed("repro's helpers", (was.helper, now.helper), "environment", Weight.UNLIKELY)


def _host(before: Side, after: Side) -> Layer:
    """Records of earlier versions do not tell the processor, the GPUs and the kernel; then nothing is said of them."""
    was, now = before.record.planned.host, after.record.planned.host
    told = bool(was.cpu and now.cpu)
    found = [*_processor(was, now)] if told else []
    given = (side.record.started.gpus if side.record.started else None for side in (before, after))
    found += _changed("gpus given", given, "gpus")
    asked = (side.record.planned.gpus_asked for side in (before, after))
    found += _changed("gpus asked for", asked, "gpus", Weight.UNLIKELY)
    found += _changed("cpus", (was.cpus, now.cpus), "threads", Weight.UNLIKELY)
    for name in ("memory", "engine", "system"):
        found += _changed(name, (getattr(was, name), getattr(now, name)), "host", Weight.UNLIKELY)
    found += _changed("name", (was.name, now.name), "host", Weight.NONE)
    unknown = "" if told else "a record does not tell the processor"
    return Layer(name="host", differences=tuple(found), unknown=unknown)


def _processor(was: Host, now: Host) -> Iterator[Difference]:
    yield from _changed("cpu", (was.cpu, now.cpu), "cpu")
    before, after = set(was.cpu_flags), set(now.cpu_flags)
    flags = (" ".join(sorted(one - other)) or None for one, other in ((before, after), (after, before)))
    yield from _changed("cpu flags", flags, "cpu")
    yield from _changed("architecture", (was.architecture, now.architecture), "cpu")
    yield from _changed("gpus", (", ".join(map(_gpu, host.gpus)) or "none" for host in (was, now)), "gpus")
    yield from _changed("kernel", (was.kernel, now.kernel), "host", Weight.UNLIKELY)


def _gpu(gpu: Gpu) -> str:
    """Which one of equal ones it was decides nothing."""
    return f"{gpu.name} (architecture {gpu.architecture}, driver {gpu.driver})"
