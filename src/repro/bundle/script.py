"""A record -> reproduce.sh and REPRODUCE.md: the run again, for who has an engine and nothing of ours. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from repro.experiment import Experiment, Value
from repro.record import OutputFile, Planned, Record
from repro.restoring import frozen
from repro.running import ownership
from repro.running.plan import HOME, start_command
from repro.secrets.secretsfolder import INSIDE as SECRETS

BODY = Path(__file__).with_name("reproduce.sh")
RESULTS, BY_MEANING, BY_PRODUCTS = (f"expected/{name}-sha256.txt" for name in ("results", "by-meaning", "by-products"))
HEAD = """\
#!/bin/sh
# Runs the experiment of this folder again, and compares what comes out with what came out then.
#
# usage: sh reproduce.sh [NEW FOLDER FOR THE OUTPUTS]      (default: reproduced, here)
#
# It needs Docker or Podman, a shell, and what is in coreutils; no network. DOCKER names another program than docker.
# Exit code: 0 every result has the same bytes, 1 it ran and something differs, 2 a wrong call, 3 it could not be run.
"""


class Code(Value, frozen=True, kw_only=True):
    """What files alone do not tell of the code: not every program that unpacks a zip keeps it."""

    programs: tuple[str, ...]  # files of the bundle that may be executed
    links: dict[str, str]  # symbolic links in code/, and where they lead


def lists(outputs: Sequence[OutputFile]) -> dict[str, bytes]:
    """What should come out, as lists for `sha256sum -c`: the same bytes, the same meaning, and what may differ."""
    groups: dict[str, list[OutputFile]] = {RESULTS: [], BY_MEANING: [], BY_PRODUCTS: []}
    for file in outputs:
        result = BY_MEANING if file.canonical else RESULTS
        groups[result if file.role == "result" else BY_PRODUCTS].append(file)
    return {name: sums({_path(file): file.sha256 for file in files}) for name, files in groups.items()}


def _path(file: OutputFile) -> str:
    return "./-" if file.path == "-" else file.path  # `-` is what is typed, to sha256sum


def sums(digests: Mapping[str, str]) -> bytes:
    """Lines as `sha256sum` writes them."""
    return "".join(_sum(name, digests[name]) for name in sorted(digests, key=str.encode)).encode()


def _sum(name: str, digest: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{chr(92) if escaped != name else ''}{digest}  {escaped}\n"


def text(record: Record, code: Code, image: Mapping[str, int], layers: Sequence[str]) -> bytes:
    """The script. `image`: the files of the image's layout with their sizes; none in a thin bundle."""
    planned, ended = record.planned, record.ended
    experiment = frozen.thaw(record).experiment
    exit_code = "" if ended is None or ended.exit_code is None else str(ended.exit_code)
    facts = {
        "run": planned.run,
        "image_name": planned.image.tag,
        "layers": "".join(f"{layer} " for layer in layers),
        "data": " ".join(dataset.name for dataset in planned.data),
        "exit_code": exit_code,
        "as_root": "yes" if experiment.user == "root" else "",
        "secrets_needed": " ".join(experiment.secrets),
        "secrets_folder": SECRETS,
    }
    lines = [HEAD, *(f"{name}={shlex.quote(value)}" for name, value in facts.items())]
    lines += ["", "start() { # FURTHER OPTIONS", *_start(record, experiment), "}"]
    lines += ["", "archive() {", *_archive(image), "}"]
    lines += ["", "restore_code() {", "    :", *_restore(code), "}", ""]
    return "\n".join(lines).encode() + b"\n" + BODY.read_bytes()


def _start(record: Record, experiment: Experiment) -> list[str]:
    planned = record.planned
    command = start_command(planned.command, experiment.secrets, experiment.resources)
    options = [*_options(planned, experiment), *_gpus(record.started.gpus if record.started else "none")]
    lines = ['    "$engine" run --rm', *(f"        {' '.join(map(shlex.quote, option))}" for option in options)]
    lines += [f"        --env {shlex.quote(f'{name}={value}')}" for name, value in sorted(planned.env.items())]
    lines += ['        "$@" "$image"', f"        {shlex.join(command)}"]
    return [" \\\n".join(lines)]


def _options(planned: Planned, experiment: Experiment) -> list[tuple[str, ...]]:
    limits = experiment.resources
    scratch = f"rw,exec,nosuid,nodev,size={limits.tmp},mode=1777"
    options: list[tuple[str, ...]] = [
        ("--network", planned.network),
        ("--workdir", "/workspace"),
        ("--init", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        ("--stop-signal", limits.stop_signal),
        ("--tmpfs", f"/tmp:{scratch}"),  # noqa: S108 - the container's
        ("--tmpfs", f"{HOME}:{scratch}"),
        ("--shm-size", str(limits.shm)),
        ("--pids-limit", str(limits.pids)),
    ]
    if limits.cpus:
        options.append(("--cpus", f"{limits.cpus:g}"))
    if limits.memory:
        options.append(("--memory", str(limits.memory), "--memory-swap", str(limits.memory)))
    if experiment.user == "root":
        options += [("--cap-add", each) for each in ownership.ROOT_CAPABILITIES]
    return options


def _gpus(given: str) -> list[tuple[str, ...]]:
    """As many as the run had: which ones is another machine's."""
    if given in ("none", ""):
        return []
    if given == "all" or given.isdecimal():
        return [("--gpus", given)]
    return [("--gpus", str(len(given.split(","))))]


def _archive(image: Mapping[str, int]) -> list[str]:
    lines = [_entry(name, size) for name, size in sorted(image.items())]
    return [*lines, "    head -c 1024 /dev/zero"]


def _entry(name: str, size: int) -> str:
    """A call of `entry` in reproduce.sh. From 8 GiB on, the size fills its field to the end, which readers take."""
    octal = f"{size:011o}"
    field = octal if len(octal) > 11 else f"{octal}\\0000"
    header = (name, "0000644", "0" * 14, octal, "0" * 11, "0", "ustar", "00", " " * 8)
    return f"    entry {name} {size} '{field}' {sum(''.join(header).encode()):06o}"


def _restore(code: Code) -> list[str]:
    programs = [f"    chmod +x {shlex.quote(f'./{path}')}" for path in sorted(code.programs)]
    links = [
        f"    ln -sfn -- {shlex.quote(target)} {shlex.quote(f'./code/{path}')}"
        for path, target in sorted(code.links.items())
    ]
    return programs + links


GUIDE = """\
# {run}

This folder holds one run of the experiment `{name}`: the code, the configuration, the data and the image that it ran
in, and everything that came out of it. It was made by `repro {version}`, which is not needed to use it.

| | |
|---|---|
| command | `{command}` |
| ran | {began}, {how} |
| commit | `{commit}` |
| image | `{image}` |
| record | sha256 `{digest}` |

The last line names the run. If it was published somewhere (in an article, in a signed statement), compare it with
`sha256sum record.canonical.json`.

## Is it whole?

    sha256sum -c manifest-sha256.txt

{thin}## Run it again

    sh reproduce.sh

needs Docker or Podman, a shell and coreutils, and no network. It loads the image, runs the command in it as it was run
then (the same environment, limits and mounts, network `{network}`), writes what comes out to `reproduced/`, and
compares it with what came out then. It ends with 0 when every result has the same bytes, with 1 when something differs,
with 3 when it could not be run. Floating-point results may differ on another kind of processor or GPU.
{secrets}
## Run it again with `repro`

    pip install repro
    repro import {run}.crate.zip
    repro reproduce {run}

also compares metrics, and files that differ in nothing but their dates, and says where and why two runs went apart.

## What is where

| | |
|---|---|
| `record.json` | all that is known of the run; `record.canonical.json` is the same in one fixed form |
| `config.json`, `config.yaml` | the configuration that the experiment read |
| `code/` | its code; `code.bundle` is the same as a git repository with its history: `git clone code.bundle` |
| `image/` | the image, as an OCI image layout; `inputs/` what it was made from and what is in it |
| `data/` | the datasets |
| `inside/` | what `repro` mounts into the container |
| `outputs/` | what came out; `expected/` their digests |
| `logs/`, `journal/` | what it printed, and its metrics |
| `verifications/` | what became of attempts to get it back; absent when there were none |
| `ro-crate-metadata.json` | all this for machines: an RO-Crate (Process Run Crate) |
"""
THIN = """\
The image and the data are not in it: `fetch.txt` lists them with where they come from, their size and their sha256.

"""


def guide(record: Record, digest: str, *, thin: bool) -> bytes:
    """REPRODUCE.md."""
    planned, ended = record.planned, record.ended
    names = ", ".join(f"`{name}`" for name in planned.config.get("secrets") or {})
    needed = f"\nIt was given secrets, which are not in the bundle: {names}. The script says how to give them.\n"
    return GUIDE.format(
        run=planned.run,
        name=planned.name,
        version=planned.repro,
        command=shlex.join(planned.command).replace("|", "\\|").replace("\n", " "),
        began=f"{(record.started.at if record.started else planned.created):%Y-%m-%d %H:%M:%S %Z}",
        how=f"{record.state}" + ("" if not ended or ended.exit_code is None else f", exit code {ended.exit_code}"),
        commit=planned.code.commit,
        image=planned.image.tag,
        digest=digest,
        network=planned.network,
        thin=THIN if thin else "",
        secrets=needed if names else "",
    ).encode()
