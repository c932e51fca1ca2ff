"""What engines answer -> one form: Docker of any age, both its image stores and Podman say the same differently."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

from repro.experiment import Value

TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)?$")
UNKNOWN = datetime(1970, 1, 1, tzinfo=timezone.utc)
BARE_ID = re.compile(r"[0-9a-f]{64}")
WHOLE_LINES = 28  # the oldest engine that was seen to keep them
HEADER = 8  # bytes before each frame of output: which stream, and how long
NO_LIMIT = 1 << 60  # bytes; cgroups have a number for no limit, too
LIMITS = {"memory": "MemoryLimit", "cpus": "CpuCfsQuota", "pids": "PidsLimit"}  # ours -> an engine's word for it


class EngineFacts(Value, frozen=True, kw_only=True):
    """What an engine says of itself."""

    product: str  # Docker, Podman
    version: str
    api: str
    store: str  # overlay2, containerd, ...
    platform: str  # linux/amd64
    cpus: int
    memory: int  # bytes
    gpus: str  # how GPUs are announced: nvidia, cdi; "" for not at all (a hook may serve them all the same)
    data_root: str
    name: str  # host name
    kernel: str = ""  # of the machine that it runs on, as `uname -r` says
    id: str = ""  # of this engine's state; Podman has none
    rootless: bool = False  # it runs as a user: root in its containers is that user
    unlimited: tuple[str, ...] = ()  # limits that it takes and does not keep: memory, cpus, pids

    @property
    def podman(self) -> bool:
        """Whether it is Podman behind Docker's API."""
        return self.product == "Podman"


class ContainerFacts(Value, frozen=True, kw_only=True):
    """What an engine says of one container in its list."""

    id: str
    name: str
    image: str  # id
    labels: dict[str, str]  # its own, and those of its image
    state: str  # created, running, exited, ...
    created: int  # seconds since 1970


class Exit(Value, frozen=True, kw_only=True):
    """How a container ended, as its engine tells it."""

    code: int
    oom: bool | None  # None: the engine does not tell
    error: str = ""
    started: datetime | None = None
    finished: datetime | None = None

    @property
    def lasted(self) -> timedelta | None:
        """How long it ran, by the engine's clock."""
        return self.finished - self.started if self.started and self.finished else None


class Found(Value, frozen=True, kw_only=True):
    """A container as somebody finds it who did not start it."""

    id: str
    state: str  # created, running, paused, exited, ...
    started: datetime | None
    gpus: tuple[str, ...] | int  # what it was created with: ids; a number (-1: all); () for none


def splits_lines(version: dict[str, Any]) -> bool:
    """Whether an engine's `local` logs lose the end of each line of more than 16 KiB: 20.10 does, 28 does not."""
    major = str(version.get("Version", "")).partition(".")[0]
    return not is_podman(version) and major.isdigit() and int(major) < WHOLE_LINES


def frames(blocks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The frames in a container's output as engines send it: as many at once as have arrived whole."""
    rest = b""
    for block in blocks:
        data, at, found = rest + block, 0, []
        while len(data) >= at + HEADER:
            begin = at + HEADER
            end = begin + int.from_bytes(data[begin - 4 : begin], "big")
            if end > len(data):
                break
            found.append(data[begin:end])
            at = end
        rest = data[at:]
        if found:
            yield found


def whole_lines(groups: Iterable[list[bytes]]) -> Iterator[list[bytes]]:
    """The output in log frames that begin with their time, with the line ends that were lost.

    Pieces of one line have one time; only the last of them has the line's end, where it was not lost.
    """
    unended = b""  # the time of a line that may go on
    for group in groups:
        found = []
        for frame in group:
            time, _, text = frame.partition(b" ")
            if unended and time != unended:
                found.append(b"\n")
            unended = b"" if text.endswith(b"\n") else time
            found.append(text)
        yield found


def exit_of(state: dict[str, Any], *, podman: bool) -> Exit | None:
    """How a container ended, from the state in an answer to `/containers/ID/json`; None while it has not."""
    if state.get("Running") or state.get("Status") in ("created", "configured", "initialized"):
        return None
    oom = bool(state.get("OOMKilled"))
    untold = podman and state["ExitCode"] == 137 and not oom
    return Exit(
        code=state["ExitCode"],
        oom=None if untold else oom,
        error=state.get("Error") or "",
        started=_moment(state.get("StartedAt")),
        finished=_moment(state.get("FinishedAt")),
    )


def found(answer: dict[str, Any]) -> Found:
    """The container in an answer to `/containers/ID/json`."""
    requests = (answer.get("HostConfig") or {}).get("DeviceRequests") or []
    state = answer["State"]
    return Found(
        id=answer["Id"],
        state=state.get("Status") or ("running" if state.get("Running") else "exited"),
        started=_moment(state.get("StartedAt")),
        gpus=_gpus(requests[0]) if requests else (),
    )


def _gpus(request: dict[str, Any]) -> tuple[str, ...] | int:
    ids = tuple(name.partition("=")[2] or name for name in request.get("DeviceIDs") or [])
    return -1 if ids == ("all",) else ids or int(request.get("Count") or 0) or ()


def _moment(text: str | None) -> datetime | None:
    """A time that an engine writes; of what has not happened it writes the year 1."""
    when = time_of(text or "")
    return None if when.year < 1980 else when


def time_of(text: str) -> datetime:
    """When an engine says that it was; engines write nanoseconds, or nothing at all."""
    found = TIME.match(text)
    if found is None:
        return UNKNOWN
    micro = (found[2] or "").ljust(6, "0")[:6]
    return datetime.fromisoformat(f"{found[1]}.{micro}{(found[3] or 'Z').replace('Z', '+00:00')}")


class Use(Value, frozen=True, kw_only=True):
    """What a container uses at a moment, as its engine counts it; sizes in bytes."""

    at: float  # seconds since 1970, by the engine's clock
    cpu: float  # seconds, of all cores together, since the container's start
    memory: int  # without files that are only cached
    memory_limit: int | None  # the machine's, where the container has none
    received: int | None  # None: it has no network of its own
    sent: int | None


def container_use(stats: dict[str, Any]) -> Use | None:
    """What an engine's answer to `/containers/ID/stats` says; None when the container does not run.

    Where memory is counted depends on the version of cgroups, and on the engine's.
    """
    memory = stats.get("memory_stats") or {}
    at = _moment(stats.get("read"))
    if not memory.get("usage") or at is None:
        return None
    details = memory.get("stats") or {}
    cached = details.get("total_inactive_file", details.get("inactive_file", 0))
    limit = memory.get("limit") or NO_LIMIT
    networks = (stats.get("networks") or {}).values()
    return Use(
        at=at.timestamp(),
        cpu=((stats.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage", 0) / 1e9,
        memory=max(0, memory["usage"] - cached),
        memory_limit=limit if limit < NO_LIMIT else None,
        received=sum(each.get("rx_bytes", 0) for each in networks) if networks else None,
        sent=sum(each.get("tx_bytes", 0) for each in networks) if networks else None,
    )


def container_facts(found: dict[str, Any]) -> ContainerFacts:
    """The facts in an entry of an engine's answer to `/containers/json`."""
    return ContainerFacts(
        id=found["Id"],
        name=next(iter(found.get("Names") or [found["Id"]])).lstrip("/"),
        image=full_id(found["ImageID"]),
        labels=found.get("Labels") or {},
        state=found.get("State", ""),
        created=int(found.get("Created", 0)),
    )


def engine_facts(info: dict[str, Any], version: dict[str, Any]) -> EngineFacts:
    """The facts in an engine's answers to `/info` and `/version`."""
    driver = dict(pair for pair in info.get("DriverStatus") or [] if len(pair) == 2)
    containerd = "io.containerd.snapshotter" in str(driver.get("driver-type", ""))
    podman = is_podman(version)
    return EngineFacts(
        product="Podman" if podman else "Docker",
        version=version.get("Version", ""),
        api=version.get("ApiVersion", ""),
        store="containerd" if containerd else info.get("Driver", ""),
        platform=f"{version.get('Os', 'linux')}/{version.get('Arch', '')}",
        cpus=info.get("NCPU", 0),
        memory=info.get("MemTotal", 0),
        gpus="" if podman else _gpu_support(info),  # Podman names runtimes that its Docker API does not use
        data_root=info.get("DockerRootDir", ""),
        name=info.get("Name", ""),
        kernel=info.get("KernelVersion", ""),
        id=info.get("ID", "") or "",
        rootless=any(option.startswith("name=rootless") for option in info.get("SecurityOptions") or []),
        unlimited=tuple(ours for ours, word in LIMITS.items() if info.get(word) is False),
    )


def is_podman(version: dict[str, Any]) -> bool:
    """Whether an answer to `/version` is Podman's."""
    return any("Podman" in part.get("Name", "") for part in version.get("Components") or [])


def _gpu_support(info: dict[str, Any]) -> str:
    if "nvidia" in (info.get("Runtimes") or {}):
        return "nvidia"
    devices = [str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or []]
    return "cdi" if any(device.startswith("nvidia.com/gpu=") for device in devices) else ""


def cdi_names(gpus: tuple[str, ...] | int) -> list[str]:
    """GPUs as the Container Device Interface names them in what `nvidia-ctk cdi generate` writes."""
    wanted = gpus if isinstance(gpus, tuple) else ("all",) if gpus < 0 else map(str, range(gpus))
    return [each if "=" in each else f"nvidia.com/gpu={each}" for each in wanted]


def at_least(api: str, *wanted: int) -> bool:
    """Whether a version of the API, as 1.41, is that one or a later one."""
    return tuple(int(part) for part in api.split(".")) >= wanted


def full_id(image: str) -> str:
    """An image id as Docker writes it: Podman leaves out the algorithm here and there."""
    return f"sha256:{image}" if BARE_ID.fullmatch(image) else image


def familiar(name: str) -> str:
    """An image's name as its user wrote it: Podman completes it, with `localhost` where it was loaded from a file."""
    for prefix in ("docker.io/library/", "docker.io/", "localhost/"):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name
