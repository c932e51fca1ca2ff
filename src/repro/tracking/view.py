"""Record -> its view in MLflow: tags, parameters, datasets, description, in MLflow's words and limits; pure."""

from __future__ import annotations

import base64
import hashlib
import json
import posixpath
import re
import shlex
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from repro import identity
from repro.experiment import Value
from repro.record import DatasetUsed, End, ImageUsed, Record

KEY_LIMIT, PARAM_LIMIT, TAG_LIMIT = 250, 6000, 8000
CUT = " … (cut; all of it is in {})"
SUBJECTS = 3  # named in a remark; all are in tracking.json
ODDITIES = {  # in the order of their telling
    "ours": "an experiment cannot set tags that say what repro knows",
    "renamed": "MLflow has stricter names",
    "cut": "too long for MLflow, and whole in the run folder",
    "changed": "MLflow keeps the first value of a parameter, the journal has the others",
    "infinite": "MLflow keeps ±1.797e308 in the place of an infinite value",
    "time": "a point before the year 1970 stays in the journal",
    "refused": "MLflow refused",
    "artifact": "no artifact, since the store did not take it",
}
VIEW = "repro"  # the saved view's key, in the address of MLflow's page
STATUS = {End.FINISHED: "FINISHED", End.KILLED: "KILLED"}  # the others are FAILED
OURS = re.compile(  # tags that an experiment cannot set by itself
    r"(run|run_key|result|record|reproduces|repeats|verdict|image|image_id|image_digest|image_manifest|image_spec"
    r"|image_content|floating|drift|commit|dirty|command|gpus|network|exit_code|ended|nested"
    r"|mlflow\.(user|parentRunId|runName|note\.content|(source|docker|project)\..*))$"
)
HOSTS = re.compile(r"^(https?://|ssh://git@|git@)(github\.com|gitlab\.com|bitbucket\.org)[:/]")


class Dataset(Value, frozen=True, kw_only=True):
    """A dataset as MLflow keeps it; `source` and `profile` are JSON."""

    name: str
    digest: str
    source_type: str
    source: str
    profile: str
    context: str
    schema: str = ""


def status(end: End) -> str:
    """MLflow's word for how a run ended."""
    return STATUS.get(end, "FAILED")


def tags(record: Record, verdict: str = "") -> dict[str, str]:
    """MLflow's own tags and the short ones of ours, as far as they are known; `verdict`: of a run that repeats one."""
    planned, code, image = record.planned, record.planned.code, record.planned.image
    found: dict[str, str | None] = {
        "run": planned.run,
        "run_key": planned.run_key or None,
        "verdict": verdict or None,
        "image": image.tag,
        "image_id": image.id,
        "image_digest": image.digest,
        "image_manifest": image.manifest,
        "image_spec": image.spec,
        "image_content": image.content or None,
        "floating": ", ".join(image.floating) or None,
        "drift": image.drift,
        "commit": code.commit,
        "dirty": _word(code.dirty),
        "command": shlex.join(planned.command),
        "gpus": record.started.gpus if record.started else planned.gpus_asked,
        "network": planned.network,
        "reproduces": planned.reproduces,
        "repeats": planned.repeats,
        "mlflow.user": planned.host.user,
        "mlflow.docker.image.uri": image.digest or image.tag,
        "mlflow.docker.image.id": image.id,
        "mlflow.note.content": note(record),
        **_source(record),
    }
    if record.ended:
        found["ended"] = record.ended.end.value
        found["result"] = record.ended.result or None
        found["record"] = identity.record_digest(record)
        found["exit_code"] = None if record.ended.exit_code is None else str(record.ended.exit_code)
    return {key: cut(value, TAG_LIMIT) for key, value in found.items() if value is not None}


def drift(other: Mapping[str, str], image: ImageUsed) -> str:
    """What to say of another run, by its tags, whose image has the same spec and other content."""
    named, content = other.get("run", ""), other.get("image_content", "")
    return (
        f"the same image spec had other content in run {named}: {content} (image {other.get('image_id', '')}) "
        f"there, {image.content} (image {image.id}) here; inputs/packages.json of both tell which packages differ"
    )


def _source(record: Record) -> dict[str, str | None]:
    """MLflow links a commit only where it knows the host; elsewhere its link would lead nowhere."""
    code = record.planned.code
    hosted = code.remote is not None and HOSTS.match(code.remote) is not None
    return {
        "mlflow.source.name": code.remote if hosted else posixpath.basename(record.planned.project.rstrip("/")),
        "mlflow.source.type": "PROJECT" if hosted else "LOCAL",
        "mlflow.project.entryPoint": entry_point(record.planned.command),
        "mlflow.source.git.commit": code.commit,
        "mlflow.source.git.branch": code.branch,
        "mlflow.source.git.repoURL": code.remote,
        "mlflow.source.git.dirty": _word(code.dirty),
    }


def entry_point(command: Iterable[str]) -> str:
    """The file that a command runs: its first word that looks like one of the project's, else its program."""
    words = list(command)
    for word in words:
        if re.search(r"\w\.\w+$", word) and not word.startswith(("-", "/")):
            return word
    return words[0]


def note(record: Record) -> str:
    """The description. MLflow folds it after its first lines and lists it as it is written: plain text first."""
    planned, code, image = record.planned, record.planned.code, record.planned.image
    first = f"repro show {planned.run}"
    if record.ended and record.ended.end is not End.FINISHED:
        word = "Killed" if record.ended.end is End.KILLED else "Failed"  # MLflow's list shows both by one icon
        first = f"{word}: {record.ended.reason} · {first}"
    lines = [
        f"image {image.tag}, id `{image.id}`" + (f", content `{image.content}`" if image.content else ""),
        f"pushed as `{image.digest}`" if image.digest else "",
        f"base `{image.base}`, resolved `{image.base_resolved}`, {image.platform}",
        f"code {_commit_link(code.head, code.remote)}"
        + (f" and uncommitted changes, together `{code.commit}`" if code.dirty else ""),
        *(f"data {dataset.name}: sha256 `{dataset.digest}`" for dataset in planned.data),
        f"host {planned.host.name}, {planned.host.engine}",
        *planned.notices,
        *(record.started.notices if record.started else ()),
    ]
    text = planned.config.get("description") or ""
    return cut("\n\n".join([first, *([text] if text else []), *filter(None, lines)]), TAG_LIMIT)


def _commit_link(commit: str, remote: str | None) -> str:
    found = HOSTS.match(remote) if remote else None
    if remote is None or found is None:
        return f"`{commit}`"
    path = remote[found.end() :].removesuffix(".git")
    branch = "commits" if found[2] == "bitbucket.org" else "commit"
    return f"[{commit[:12]}](https://{found[2]}/{path}/{branch}/{commit})"


def params(config: Mapping[str, Any]) -> dict[str, str]:
    """The configuration, flat: dots between the levels, lists as JSON. Keys that fall together keep apart."""
    values = dict(_flat("", config))
    return {name: cut(_plain(values[path]), PARAM_LIMIT) for name, path in param_names(config).items()}


def param_names(config: Mapping[str, Any]) -> dict[str, str]:
    """The name of each parameter in MLflow, and its path in the configuration."""
    found: dict[str, str] = {}
    for path, _value in _flat("", config):
        name = key(path)
        while name in found:
            name = key(f"{name}_")
        found[name] = path
    return found


def long_params(config: Mapping[str, Any]) -> dict[str, int]:
    """The parameters that MLflow gets cut, with their lengths."""
    values = dict(_flat("", config))
    lengths = {name: len(_plain(values[path])) for name, path in param_names(config).items()}
    return {name: length for name, length in lengths.items() if length > PARAM_LIMIT}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _flat(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, member in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), member)
    else:
        yield prefix, value


def key(name: str) -> str:
    """`name` as MLflow takes it: letters, digits, `_ - . : /` and blanks, no empty or dotted part of a path."""
    allowed = re.sub(r"[^/\w.\- :]", "_", name)
    parts = ["_" * len(part) if part in (".", "..") else part for part in allowed.split("/") if part]
    clean = "/".join(parts) or "_"
    if clean.startswith(".."):  # MLflow compares the beginning, not the first part
        clean = "__" + clean[2:]
    return clean if len(clean) <= KEY_LIMIT else _with_hash(clean, name)


def key_apart(name: str) -> str:
    """`name` as MLflow takes it, with a digest: for when the plain form is another one's."""
    return _with_hash(key(name), name)


def _with_hash(clean: str, name: str) -> str:
    return f"{clean[: KEY_LIMIT - 9]}-{hashlib.sha256(name.encode(errors='backslashreplace')).hexdigest()[:8]}"


def cut(text: str, limit: int, where: str = "config.yaml") -> str:
    """At most `limit` characters, and a word about it, and where the whole is, when there were more."""
    clean = text.encode(errors="replace").decode().replace("\0", "\ufffd")  # databases take neither
    word = CUT.format(where)
    return clean if len(clean) <= limit else clean[: limit - len(word)] + word


def remarks(oddities: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """What MLflow could not take as it was, one sentence for each kind of it."""
    told = []
    for kind, sentence in ODDITIES.items():
        if found := oddities.get(kind):
            more = len(found) - SUBJECTS
            named = "; ".join(found[:SUBJECTS]) + (f"; and {more:,} more" if more > 0 else "")
            told.append(f"{sentence}: {named}")
    return tuple(told)


def settable(tag: str) -> bool:
    """Whether an experiment may set this tag: it cannot pretend to be another run."""
    return OURS.match(tag) is None


def dataset(used: DatasetUsed) -> Dataset:
    """A dataset as a chip on the run's page; a whole sha256 is longer than MLflow's digests may be."""
    return Dataset(
        name=used.name,
        digest=used.digest[:16],
        source_type="local",
        source=json.dumps({"uri": used.folder, "sha256": used.digest}),
        profile=json.dumps({"files": len(used.files), "bytes": sum(file.size for file in used.files)}),
        context="training",
    )


def saved_view(metrics: Iterable[str], now: int) -> str:
    """The columns of MLflow's list of runs, in the form in which its page keeps a shared view. `now` in ms."""
    known = ["val_accuracy", "test_accuracy", "accuracy", "loss"]
    more = sorted(name for name in metrics if name not in known and "/" not in name and "`" not in name)
    shown = known + more[: 8 - len(known)]
    columns = ["attributes.`Source`", "attributes.`Version`"]
    columns += [f"metrics.`{name}`" for name in shown]
    columns += ["params.`seed`", *(f"tags.`{name}`" for name in ("image", "ended", "gpus", "dirty"))]
    state = base64.b64encode(zlib.compress(json.dumps({"selectedColumns": columns}).encode())).decode()
    return json.dumps({"name": VIEW, "createdAt": now, "updatedAt": now, "state": f"deflate;{state}"})


def _word(value: bool) -> str:
    return "true" if value else "false"
