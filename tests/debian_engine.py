"""Real engines of other Debians for tests: Podman, and a newer Docker, each with a root file system to itself.

Nothing is installed on the machine. The root file system is bootstrapped once for each Debian suite and kept in the
cache folder. The engine is the first process of a namespace of processes, so all that it started ends with it, as do
its mounts. Its containers reach no network: use `network=none`. Needs root and mmdebstrap.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from repro.project import Project, cache_folder
from repro.recipe import base
from repro.running.plan import INSIDE
from tests.second_engine import answers, copy_image, require_root

USER = 1000  # of a rootless engine
PODMAN = ("podman", "runc", "catatonit", "uidmap", "fuse-overlayfs", "ca-certificates")
DOCKER = ("docker.io", "containerd", "runc", "tini", "iptables", "ca-certificates")
ROOTLESS = ("rootlesskit", "uidmap", "slirp4netns", "iproute2")
START_SECONDS = 60.0
Run = Callable[..., "tuple[subprocess.CompletedProcess[str], Project]"]
# what a machine without the right to raise limits, and with cgroups of the first version, needs
CONFIGURATION = """\
[containers]
default_ulimits = []
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
NO_INIT = 'init_path = "/nowhere/catatonit"'
CDI = {
    "cdiVersion": "0.5.0",
    "kind": "nvidia.com/gpu",
    "devices": [
        {
            "name": name,
            "containerEdits": {
                "env": [f"NVIDIA_VISIBLE_DEVICES={name}"],
                # in place of a device, which has to be there before a rootless engine can give it
                "mounts": [{"hostPath": "/usr/lib", "containerPath": "/fake-gpu", "options": ["bind", "ro"]}],
            },
        }
        for name in ("0", "1", "all")
    ],
}
# $1: root file system, $2: our folder, $3: what runs mount besides what lies in /tmp, $4: our files in its /etc; then
# the command
ENTER = """\
set -e
mount --bind "$1" "$1"
mount --rbind /sys "$1/sys"
mount --rbind /dev "$1/dev"
[ ! -e "$2/tun" ] || mount --bind "$2/tun" "$1/dev/net/tun"
mount -t proc proc "$1/proc"
mount -t tmpfs tmpfs "$1/run"
mount --bind "$2/var-tmp" "$1/var/tmp"
for name in $4; do
    mount --bind "$2/etc/$name" "$1/etc/$name"
done
mount --rbind /tmp "$1/tmp"
case "$3" in
    /tmp/*) ;;
    *) mkdir -p "$1$3"; mount --bind "$3" "$1$3" ;;
esac
cd "$1"
pivot_root . mnt
cd /
shift 4
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin PODMAN_IGNORE_CGROUPSV1_WARNING=1 "$@"
"""


@contextmanager
def podman_engine(
    suite: str, *, rootless: bool = False, gpus: bool = False, init: bool = True
) -> Iterator[DebianEngine]:
    """A started Podman of that Debian; everything of it is gone afterwards.

    `gpus`: with two of them, through CDI. `init`: with catatonit.
    """
    with _started(root_file_system(suite, "podman", PODMAN)) as engine:
        etc = engine.folder / "etc"
        for name in ("cdi", "containers"):
            (etc / name).mkdir()
        configuration = CONFIGURATION if init else f"{CONFIGURATION}{NO_INIT}\n"
        (etc / "containers" / "containers.conf").write_text(configuration)
        if gpus:
            (etc / "cdi" / "nvidia.json").write_text(json.dumps(CDI))
        names = (
            [*_person(engine), "cdi", "containers/containers.conf"]
            if rootless
            else ["cdi", "containers/containers.conf"]
        )
        run = engine.folder / "run"
        own = [f"--root={engine.folder}/storage", f"--runroot={run}/storage", f"--tmpdir={run}/tmp"]
        command = [*_as_person(engine), "podman"] if rootless else [f"HOME={engine.folder}/home", "podman", *own]
        engine.start([*command, "system", "service", "--time=0", engine.url], names)
        yield engine


@contextmanager
def docker_engine(
    suite: str, *, containerd: bool = False, rootless: bool = False, gpus: bool = False
) -> Iterator[DebianEngine]:
    """A started Docker of that Debian, with the containerd store or the classic one; gone afterwards.

    `gpus`: with two of them, through CDI.
    """
    with _started(root_file_system(suite, "docker", (*DOCKER, *ROOTLESS))) as engine:
        cdi = engine.folder / "etc" / "cdi"
        cdi.mkdir()
        if gpus:
            (cdi / "nvidia.json").write_text(json.dumps(CDI))
        options = {
            "features": {"containerd-snapshotter": containerd},
            "cdi-spec-dirs": [str(cdi)],
            "iptables": False,
            "ip6tables": False,
        }
        (engine.folder / "etc" / "daemon.json").write_text(json.dumps(options))
        command = ["dockerd", "--host", engine.url, "--config-file", f"{engine.folder}/etc/daemon.json"]
        if rootless:
            # what a system that has users lets every one of them open
            os.mknod(engine.folder / "tun", stat.S_IFCHR, os.makedev(10, 200))
            (engine.folder / "tun").chmod(0o666)
            names = _person(engine)
            kit = ["rootlesskit", "--net=slirp4netns", "--disable-host-loopback", "--slirp4netns-sandbox=false"]
            kit += ["--slirp4netns-seccomp=false", "--copy-up=/etc", "--copy-up=/run", "--propagation=rslave"]
            engine.start([*_as_person(engine), *kit, *command, "--rootless", "--bridge=none"], names)
        else:
            command += ["--data-root", f"{engine.folder}/data", "--exec-root", f"{engine.folder}/exec"]
            engine.start([*command, "--pidfile", f"{engine.folder}/run/dockerd.pid"], ())
        yield engine


def _person(engine: DebianEngine) -> tuple[str, ...]:
    """Make the files in its /etc that know the user of a rootless engine; their names."""
    etc = engine.folder / "etc"
    for name in ("home", "run", "var-tmp"):
        os.chown(engine.folder / name, USER, USER)
    (etc / "passwd").write_text(f"root:x:0:0::/root:/bin/sh\nada:x:{USER}:{USER}::{engine.folder}/home:/bin/sh\n")
    (etc / "group").write_text(f"root:x:0:\nada:x:{USER}:\n")
    for name in ("subuid", "subgid"):
        (etc / name).write_text("ada:200000:65536\n")
    return ("passwd", "group", "subuid", "subgid")


def _as_person(engine: DebianEngine) -> list[str]:
    home = [f"HOME={engine.folder}/home", f"XDG_RUNTIME_DIR={engine.folder}/run"]
    return [*home, "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]


@contextmanager
def as_user(engine: DebianEngine, project: Project) -> Iterator[Run]:
    """`repro run experiment=toy` by the engine's user, in a copy of the project that is theirs."""
    home = Path(tempfile.mkdtemp(prefix="ada-"))
    shutil.copytree(project.root, home / "project")
    for path in (home, *home.rglob("*")):
        os.chown(path, USER, USER)
    # the user may read what only root can, as the interpreter and the library may lie in root's home
    person = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    person += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]

    def call(*overrides: str) -> tuple[subprocess.CompletedProcess[str], Project]:
        done = subprocess.run(
            ["setpriv", *person, sys.executable, "-m", "repro.run", "experiment=toy", *overrides],
            cwd=home / "project",
            env={**os.environ, "HOME": str(home), "REPRO_CACHE": str(home / "cache"), "DOCKER_HOST": engine.url},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return done, Project(home / "project")

    try:
        yield call
    finally:
        shutil.rmtree(home)


@contextmanager
def _started(root: Path) -> Iterator[DebianEngine]:
    require_root()
    engine = DebianEngine(root, Path(tempfile.mkdtemp(prefix="debian-")))  # short: a socket's path has 107 bytes
    try:
        yield engine
    finally:
        engine.dispose()


def root_file_system(suite: str, kind: str, packages: tuple[str, ...]) -> Path:
    """Debian with an engine in it, made once."""
    folder = cache_folder() / "tests" / f"{kind}-{suite}"
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / "root"
    with filelock.FileLock(folder / "lock"):
        if not root.is_dir():
            making = folder / "making"
            shutil.rmtree(making, ignore_errors=True)
            command = ["mmdebstrap", "--mode=root", "--variant=apt", f"--include={','.join(packages)}"]
            command.append('--aptopt=Acquire::Check-Valid-Until "false"')  # mirrors of testing fall behind
            command += [f"--dpkgopt=path-exclude={pattern}" for pattern in base.LEFT_OUT]
            done = subprocess.run(
                [*command, suite, str(making), *base.mirrors(suite)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"Debian {suite} with {kind} cannot be had:\n{done.stderr[-3000:]}"
            for name in ("cdi", "containers"):
                (making / "etc" / name).mkdir(exist_ok=True)
            for name in ("subuid", "subgid", "containers/containers.conf"):  # what we mount over must be there
                (making / "etc" / name).touch()
            (making / "root").chmod(0o755)  # the library may lie there, and the user of a rootless engine mounts it
            making.rename(root)
    return root


class DebianEngine:
    """An engine with all of its state in one folder."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.url = f"unix://{folder}/run/engine.sock"
        self.log = folder / "engine.log"
        self._service: subprocess.Popen[bytes] | None = None
        self._client: Any = None
        folder.chmod(0o755)
        for name in ("home", "run", "var-tmp", "etc"):
            (folder / name).mkdir()

    def start(self, command: Sequence[str], etc: Sequence[str]) -> None:
        """Start it with our files in its /etc; returns when it answers."""
        spaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        places = [str(self.root), str(self.folder), str(INSIDE), " ".join(etc)]
        with self.log.open("ab") as log:
            self._service = subprocess.Popen(
                [*spaces, "sh", "-c", ENTER, "sh", *places, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while self._service.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if answers(self.url):
                    return
            time.sleep(0.1)
        raise AssertionError(f"the engine does not answer:\n{self.log.read_text()[-3000:]}")

    def client(self) -> Any:
        """The SDK's client of this engine; closed with it."""
        import docker

        if self._client is None:
            self._client = docker.DockerClient(base_url=self.url, timeout=30)
        return self._client

    def copy_image(self, reference: str) -> str:
        """Bring an image from the engine of the environment into this one; its id."""
        return copy_image(self.client(), reference)

    def dispose(self) -> None:
        """End the service with all that it started, and remove its files."""
        containers = []
        if self._client is not None:
            with contextlib.suppress(Exception):
                containers = [each["Id"] for each in self._client.api.containers(all=True)]
            self._client.close()
        if self._service is not None:
            # the first process of its namespace, with which the kernel ends all others: one that has become another
            # user does not die with its parent
            children = Path(f"/proc/{self._service.pid}/task/{self._service.pid}/children")
            with contextlib.suppress(OSError):
                for child in children.read_text().split():
                    os.kill(int(child), signal.SIGKILL)
            self._service.kill()
            self._service.wait()
        for container in containers:
            for group in Path("/sys/fs/cgroup").glob(f"*/*/*{container}*"):
                with contextlib.suppress(OSError):
                    group.rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)
