"""Records -> text for people and JSON for programs; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from repro import printable
from repro.record import End, Fingerprint, Host, Record, RunFolder
from repro.results import Results

LAST_LINES = 20
TAIL = 64 << 10  # bytes
METRICS = 20  # in a summary
UNPROVEN = "on different machines, or with something that no record tells: a machine, a network, a secret"
LONG_DIGEST = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}")


def summary(record: Record, folder: RunFolder, metrics: Mapping[str, float], mlflow: str, packages: str = "") -> str:
    """The answer of a run: what it was, what came out, where it is; `packages`: what was in its image."""
    planned = record.planned
    lines = [f"{planned.name}: {outcome(record)}"]
    rows = {
        "run": planned.run,
        "image": f"{planned.image.tag}  {short(planned.image.id)}",
        "drift": LONG_DIGEST.sub(r"\1", planned.image.drift or ""),
        "packages": packages,
        "commit": planned.code.commit[:12] + ("  (with uncommitted changes)" if planned.code.dirty else ""),
        "gpus": record.started.gpus if record.started else planned.gpus_asked,
        "peak": _peaks(record),
        "metrics": _metrics(metrics) or "none logged",
        "outputs": f"{folder.outputs}{_outputs(record)}",
        "mlflow": mlflow,
    }
    return "\n".join([*lines, *(f"  {key:<8} {value}" for key, value in rows.items() if value)])


def identities(record: Record, known: Mapping[str, Results]) -> str:
    """The further lines on one run: what went in and came out, by their names, on which machine, and its trace."""
    planned, ended = record.planned, record.ended
    rows: dict[str, str] = {
        "run key": planned.run_key[:16],
        "result": "".join(_result(record, known)),
        "host": _host(planned.host),
        "trace": _trace(ended.trace) if ended else "",
        "again": f"of {planned.reproduces}" if planned.reproduces else "",
        "repeats": planned.repeats or "",
    }
    return "\n".join(f"  {key:<8} {value}" for key, value in rows.items() if value)


def _host(host: Host) -> str:
    parts = [host.name, host.cpu, f"{host.cpus} cpus", memory(host.memory), host.kernel and f"Linux {host.kernel}"]
    parts += [f"{gpu.name} (driver {gpu.driver})" for gpu in host.gpus]
    return ", ".join(filter(None, parts))


def _trace(trace: Sequence[Fingerprint]) -> str:
    if not trace:
        return ""
    first, last = printable.line(trace[0].at), printable.line(trace[-1].at)
    return f"{many(len(trace), 'fingerprint')}, from {first} to {last}"


def result(record: Record, known: Mapping[str, Results]) -> str:
    """The beginning of a result, and a mark where other runs of its run key had another one."""
    digest, remark = _result(record, known)
    return digest[:8] + (known[record.planned.run_key].mark if remark else "")


def _result(record: Record, known: Mapping[str, Results]) -> tuple[str, str]:
    """A result in short, and what other runs of its run key came to."""
    digest = record.ended.result[:16] if record.ended else ""
    found = known.get(record.planned.run_key)
    if not digest or found is None or not record.ended or record.ended.end is not End.FINISHED:
        return digest, ""
    if found.results == 1:
        return digest, f"  (the same in all {found.runs:,} runs of this run key)"
    return digest, f"  ({_differ(found)})"


def _differ(found: Results) -> str:
    why = "proven non-determinism" if found.proven else UNPROVEN
    return f"{found.results:,} results in {found.runs:,} runs of one run key: {why}"


def non_determinism(records: Sequence[Record], known: Mapping[str, Results]) -> list[str]:
    """What to say below a list of the marks in it."""
    shown = {record.planned.run_key: record for record in records if result(record, known)[8:]}
    return [f"{known[key].mark.strip()} {record.planned.name}: {_differ(known[key])}" for key, record in shown.items()]


def with_results(record: Record, known: Mapping[str, Results]) -> dict[str, Any]:
    """A record as JSON, and what the runs of its run key came to; None where it is the only one."""
    plain: dict[str, Any] = msgspec.to_builtins(record)
    return {**plain, "same_run_key": known.get(record.planned.run_key)}


def _metrics(metrics: Mapping[str, float]) -> str:
    """Their names are the experiment's, which may have been up to something."""
    shown = [f"{printable.line(key)} {value:.6g}" for key, value in [*metrics.items()][:METRICS]]
    more = len(metrics) - len(shown)
    return "  ".join([*shown, f"and {more:,} more"] if more else shown)


def _peaks(record: Record) -> str:
    found = record.ended.peaks if record.ended else None
    if found is None:
        return ""
    limit = (record.planned.config.get("resources") or {}).get("memory")
    parts = [f"memory {memory(found.memory)}" + (f" of {memory(limit)}" if limit else "")]
    if found.cpu is not None:
        parts.append(f"cpu {found.cpu:.0f} %")
    if found.gpu_memory is not None:
        parts.append(f"gpu memory {memory(found.gpu_memory)}")
    return ", ".join(parts)


def memory(count: float) -> str:
    """Bytes of memory for people, in the units in which limits are given: 1.2 GiB."""
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def outcome(record: Record) -> str:
    """One sentence on how far a run has come."""
    if record.ended is None:
        return record.state
    seconds = duration(record)
    return f"{record.ended.end.value} after {seconds:.1f} s ({printable.text(record.ended.reason)})"


def duration(record: Record) -> float:
    """Seconds from the start of the container to its end, or to now."""
    if record.started is None:
        return 0.0
    end = record.ended.at if record.ended else datetime.now(timezone.utc)
    return max(0.0, (end - record.started.at).total_seconds())  # the engine's clock may be a little behind


def short(image_id: str) -> str:
    """An id as people compare it: sha256:0123456789ab."""
    kind, _, digest = image_id.rpartition(":")
    return f"{kind}:{digest[:12]}" if kind else digest[:12]


def _outputs(record: Record) -> str:
    if record.ended is None:
        return ""
    files = record.ended.outputs
    ignored = f", {record.ended.ignored:,} ignored" if record.ended.ignored else ""
    return f"  ({many(len(files), 'file')}, {size(sum(file.size for file in files))}{ignored})"


def many(count: int, what: str) -> str:
    """A count of things for people."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def size(count: float) -> str:
    """Bytes for people, in powers of 1000 as `docker image ls` shows them."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def age(then: datetime, now: datetime) -> str:
    """How long ago, in the largest unit that is not zero."""
    seconds = max(0.0, (now - then).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def failure(record: Record, folder: RunFolder) -> str:
    """Why a run did not finish: its exit code, its last lines, its log."""
    ended = record.ended
    if ended is None:
        return outcome(record)
    lines = [f"{record.planned.name} {_PAST[ended.end]}: {printable.text(ended.reason)}"]
    lines += [f"  | {line}" for line in last_lines(folder.output_log)]
    return "\n".join([*lines, f"  log  {folder.output_log}"])


_PAST = {
    End.FINISHED: "finished",
    End.FAILED: "failed",
    End.KILLED: "was stopped",
    End.TIMEOUT: "took too long",
    End.OOM: "ran out of memory",
    End.LOST: "was lost",
}


def last_lines(log: Path, count: int = LAST_LINES) -> list[str]:
    """The end of a log, without reading all of it, and without what would act upon a terminal."""
    lines = tail(log).decode(errors="replace").splitlines()
    return [printable.text(line) for line in lines[-count:]]


def tail(log: Path) -> bytes:
    """The last of a log, without reading all of it."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            return file.read(TAIL)
    except FileNotFoundError:
        return b""


def as_json(value: Any) -> str:
    """Any value of ours as JSON, for --json."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Rows in columns."""
    import io

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(*titles, box=None, pad_edge=False, padding=(0, 1), header_style="")
    for column in grid.columns:
        column.overflow = "fold"
    for row in rows:
        grid.add_row(*map(Text, row))  # not as markup: engines write [[gpu]]
    console = Console(file=io.StringIO(), width=width or 200, color_system=None)
    console.print(grid)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())
