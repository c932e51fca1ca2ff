"""A record and the files of a bundle -> ro-crate-metadata.json: an RO-Crate of the profile Process Run Crate. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

import msgspec

from repro.experiment import Value
from repro.record import End, Record

NAME = "ro-crate-metadata.json"
SPECIFICATION = "https://w3id.org/ro/crate/1.1"
PROFILE_VERSION = "0.5"
PROFILE = f"https://w3id.org/ro/wfrun/process/{PROFILE_VERSION}"
TERMS = "https://w3id.org/ro/terms/workflow-run#"
# what the context of RO-Crate 1.1 does not know; inline, so that it can be read without a network
OWN_TERMS = ("ContainerImage", "containerImage", "environment", "registry", "sha256", "tag")
FOLDERS = {
    "code": "The code that ran, as files",
    "image": "The image, as an OCI image layout",
    "inputs": "What the image was made from, and what is in it",
    "inside": "What repro mounts into the container",
    "journal": "Metrics, parameters and tags, one JSON object a line",
    "logs": "What the run printed",
    "verifications": "What became of attempts to get this run back",
    "expected": "Digests of the outputs, for sha256sum -c",
}
FORMATS = {"json": "application/json", "txt": "text/plain", "md": "text/markdown", "yaml": "application/yaml"}
FORMATS |= {
    "sh": "application/x-sh",
    "png": "image/png",
    "csv": "text/csv",
    "html": "text/html",
    "npz": "application/zip",
}

Node = dict[str, Any]


class File(Value, frozen=True, kw_only=True):
    """A file of the bundle."""

    size: int
    sha256: str


def metadata(record: Record, digest: str, files: Mapping[str, File], manifest: str | None) -> bytes:
    """The document. `digest`: the sha256 that names the record; `manifest`: of the image, where the crate has it."""
    nodes = _parts(record, files)
    action = _action(record, files)
    described = {
        "@id": NAME,
        "@type": "CreativeWork",
        "about": _ref("./"),
        "conformsTo": _ref(SPECIFICATION),
    }
    profile = {"@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": PROFILE_VERSION}
    unlicensed = {
        "@id": "#license",
        "@type": "CreativeWork",
        "name": "Not stated",
        "description": "Whoever publishes this crate states its license.",
    }
    more = [unlicensed, _agent(record), _image(record, manifest), *_environment(record)]
    graph = [described, _root(record, digest, nodes), profile, action, *nodes, *more]
    context = [f"{SPECIFICATION}/context", {name: f"{TERMS}{name}" for name in OWN_TERMS}]
    content = msgspec.json.encode({"@context": context, "@graph": graph})
    return msgspec.json.format(content, indent=2) + b"\n"


def _ref(identifier: str) -> Node:
    return {"@id": identifier}


def _one(values: list[Any]) -> Any:
    """As JSON-LD has it: one value alone, several as a list."""
    return values[0] if len(values) == 1 else values


def _id(name: str) -> str:
    return quote(name)


def _moment(at: datetime) -> str:
    return at.astimezone(timezone.utc).isoformat(timespec="seconds")


def _root(record: Record, digest: str, nodes: list[Node]) -> Node:
    planned, ended = record.planned, record.ended
    return {
        "@id": "./",
        "@type": "Dataset",
        "name": f"{planned.name}: run {planned.run}",
        "description": f"One run of the experiment {planned.name}, with everything that it takes to run it again.",
        "identifier": f"sha256:{digest}",
        "datePublished": _moment(ended.at if ended else planned.created),
        "author": _ref("#agent"),
        "license": _ref("#license"),
        "conformsTo": _ref(PROFILE),
        "hasPart": [_ref(node["@id"]) for node in nodes],
        "mentions": _ref("#run"),
    }


def _parts(record: Record, files: Mapping[str, File]) -> list[Node]:
    """What the crate holds: each file of data and outputs and each at the top, and the other folders as one."""
    nodes: list[Node] = []
    for name, file in files.items():
        folder, slash, _rest = name.partition("/")
        if slash and folder not in ("data", "outputs"):
            continue
        node: Node = {"@id": _id(name), "@type": "File", "name": name, "contentSize": str(file.size)}
        node["sha256"] = file.sha256
        node["encodingFormat"] = FORMATS.get(name.rpartition(".")[2].lower(), "application/octet-stream")
        if name == "code.bundle":
            node |= _software(record)
        nodes.append(node)
    there = {name.partition("/")[0] for name in files if "/" in name}
    nodes += [
        {"@id": f"{folder}/", "@type": "Dataset", "name": folder, "description": text}
        for folder, text in FOLDERS.items()
        if folder in there
    ]
    return nodes


def _software(record: Record) -> Node:
    code = record.planned.code
    node: Node = {
        "@type": ["File", "SoftwareSourceCode"],
        "name": record.planned.name,
        "description": "The code that ran, as a git bundle with its history",
        "version": code.commit,
    }
    return node | ({"codeRepository": code.remote, "url": code.remote} if code.remote else {})


def _action(record: Record, files: Mapping[str, File]) -> Node:
    planned, started, ended = record.planned, record.started, record.ended
    inputs = [_id(name) for name in files if name == "config.json" or name.startswith("data/")]
    results = [_id(name) for name in files if name.startswith("outputs/")]
    finished = ended is not None and ended.end is End.FINISHED
    node: Node = {
        "@id": "#run",
        "@type": "CreateAction",
        "identifier": planned.run,
        "name": f"run {planned.run}",
        "description": shlex.join(planned.command),
        "instrument": _ref("code.bundle"),
        "agent": _ref("#agent"),
        "startTime": _moment(started.at if started else planned.created),
        "endTime": _moment(ended.at if ended else planned.created),
        "actionStatus": f"http://schema.org/{'Completed' if finished else 'Failed'}ActionStatus",
        "object": _one([_ref(each) for each in inputs]),
        "result": _one([_ref(each) for each in results]),
        "containerImage": _ref("#image"),
        "environment": _one([_ref(f"#env/{_id(name)}") for name in sorted(planned.env)]),
    }
    return node | ({} if finished or ended is None else {"error": ended.reason})


def _agent(record: Record) -> Node:
    return {"@id": "#agent", "@type": "Person", "name": record.planned.host.user}


def _image(record: Record, manifest: str | None) -> Node:
    """The image by its digests: of the manifest in the crate, of the configuration, of what a registry gave."""
    used = record.planned.image
    name, _, tag = used.tag.rpartition(":")
    host, slash, rest = name.partition("/")
    registered = bool(slash) and ("." in host or ":" in host or host == "localhost")
    known = manifest or used.manifest or (used.digest or "").rpartition("@")[2]
    node: Node = {
        "@id": "#image",
        "@type": "ContainerImage",
        "additionalType": _ref(f"{TERMS}DockerImage"),
        "name": rest if registered else name,
        "tag": tag,
        "identifier": _one(sorted({each for each in (used.id, used.config, used.digest, *used.layers) if each})),
    }
    node |= {"registry": host} if registered else {}
    return node | ({"sha256": known.removeprefix("sha256:")} if known else {})


def _environment(record: Record) -> list[Node]:
    return [
        {"@id": f"#env/{_id(name)}", "@type": "PropertyValue", "name": name, "value": value}
        for name, value in sorted(record.planned.env.items())
    ]
