"""Files of a run -> files of its caller: whoever wrote them, the outputs belong to who owns the run folder."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from repro.engines.engine import ContainerSpec, Engine, Mount
from repro.engines.refusal import CommandNotFoundError
from repro.errors import EnvironmentUnfitError, ReproError
from repro.record import Planned, Record, RunFolder

# what a program needs that starts as root, makes folders for another user, and becomes that user; none of them
# reaches out of what is mounted
ROOT_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID")
GIVING = ("CHOWN", "DAC_READ_SEARCH")
HELPER_LABEL = "repro.helper"
LIBRARY = re.compile(r"(/\S+) \(0x")  # in what `ldd` prints
OURS = "/given/chown"
GIVE_SECONDS = 600.0
SETUID = stat.S_ISUID | stat.S_ISGID


def shut(planned: Planned, folder: RunFolder) -> None:
    """Close the folder of a run as root to other users: a setuid program of root's would make them root here."""
    if planned.config.get("user") == "root":
        folder.path.chmod(0o700)


def settle(record: Record, folder: RunFolder, engine: Engine, say: Callable[[str], None]) -> str:
    """After the end of a container: let all that it wrote be the caller's, and run as nobody else.

    What could not be done, in words; "" when all is well.
    """
    try:
        _disarm(folder)
        if record.planned.config.get("user") != "root":  # nobody in the container could have become somebody else
            return ""
        owner = folder.path.stat()
        if any(_is_foreign(path, owner) for path in _everything(folder)):
            say("giving the outputs back to you")
            _give_back(record, folder, engine, owner)
            _disarm(folder)  # what was root's could not be changed before
        left = [path for path in _everything(folder) if _is_foreign(path, owner)]
        if not left:
            folder.path.chmod(stat.S_IMODE(folder.logs.stat().st_mode))
    except (OSError, ReproError) as error:
        why = " ".join([error.what, *error.evidence]) if isinstance(error, ReproError) else str(error)
        return f"its outputs are not all yours ({why}): `sudo chown -hR $(id -u):$(id -g) {folder.path}`"
    return f"{len(left)} of its files are not yours, as {left[0]}" if left else ""


def _give_back(record: Record, folder: RunFolder, engine: Engine, owner: os.stat_result) -> None:
    if os.geteuid() != 0:
        _through_engine(record, folder, engine, owner)
        return
    for path in _everything(folder):
        os.lchown(path, owner.st_uid, owner.st_gid)


def _is_foreign(path: Path, owner: os.stat_result) -> bool:
    return path.lstat().st_uid != owner.st_uid


def _everything(folder: RunFolder) -> Iterator[Path]:
    """The two folders that the container could write to, and all that is below them, as far as it can be reached."""
    pending = [folder.outputs, folder.journal]
    yield from pending
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    path = Path(entry.path)
                    yield path
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(path)
        except OSError:  # closed to us: it is root's, or its owner wanted it so
            continue


def _disarm(folder: RunFolder) -> None:
    """No file of an experiment's runs with the rights of its owner when somebody else starts it."""
    for path in _everything(folder):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_mode & SETUID:
            try:
                path.chmod(stat.S_IMODE(found.st_mode) & ~SETUID)
            except PermissionError:  # of root: comes again when it has been given back
                continue


def _through_engine(record: Record, folder: RunFolder, engine: Engine, owner: os.stat_result) -> None:
    """Root is needed, and the engine has it: a short container with nothing but these two folders.

    With the image's own `chown`; with this machine's where the image has none.
    """
    planned = record.planned
    whom = "0:0" if engine.facts().rootless else f"{owner.st_uid}:{owner.st_gid}"
    given = (
        Mount(source=str(folder.outputs), target="/given/outputs", read_only=False),
        Mount(source=str(folder.journal), target="/given/journal", read_only=False),
    )
    for program, mounts in (("chown", given), (OURS, (*given, *_own_chown()))):
        spec = ContainerSpec(
            image=planned.image.id,
            name=f"repro-{planned.run}-owner",
            command=("-hR", whom, "/given/outputs", "/given/journal"),
            entrypoint=(program,),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            labels={HELPER_LABEL: planned.run, "repro.project": planned.project},
            user="0:0",
            workdir="/",
            mounts=mounts,
            tmpfs={},
            network="none",
            gpus=(),
            cpus=None,
            memory=None,
            shm=64 << 20,
            pids=64,
            stop_signal="SIGTERM",
            capabilities=GIVING,
        )
        if _succeeds(spec, engine):
            return
    raise EnvironmentUnfitError("neither the image nor this machine has a chown that runs in the image")


def _own_chown() -> tuple[Mount, ...]:
    """This machine's `chown`, and the libraries that it is linked with where its loader looks for them."""
    program = shutil.which("chown")
    if program is None:
        return ()
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)  # fails for a static one
    places = {path: os.path.realpath(path) for path in LIBRARY.findall(linked.stdout)} | {OURS: program}
    return tuple(Mount(source=source, target=target) for target, source in places.items())


def _succeeds(spec: ContainerSpec, engine: Engine) -> bool:
    """Whether the container ends well; False when its image does not hold the program.

    Raises:
        EnvironmentUnfitError: it failed for another reason.
    """
    engine.remove(spec.name)  # of an attempt that was broken off
    container = engine.create(spec)
    try:
        engine.start(container)
        exited = engine.wait(container, timeout=GIVE_SECONDS)
        if exited is None or exited.code:
            said = b"".join(engine.output(container, follow=False)).decode(errors="replace")
            if exited and exited.code in (1, 126, 127) and ("tini" in said or "catatonit" in said):
                return False
            raise EnvironmentUnfitError("chown failed", evidence=[said.strip() or f"{exited}"])
    except CommandNotFoundError:
        return False
    finally:
        engine.remove(container)
    return True
