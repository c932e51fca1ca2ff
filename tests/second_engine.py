"""A second, real Docker Engine for tests: with two GPUs that are not there, or to be killed in the middle of a run.

It has a network namespace of its own, so nothing of the first engine's bridge or firewall is touched, and it ends with
the namespace. Its containers reach no network: use `network=none`. With `host_network` the daemon reaches this machine
and what this machine reaches, on a bridge of its own. Needs root and dockerd.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SHIM = Path(__file__).parent / "gpu-shim"
START_SECONDS = 60.0
STOP_SECONDS = 30.0


def require_root() -> None:
    """Fail, or skip where REPRO_TEST_NO_ROOT=1 says that this is known: a second engine needs root."""
    if os.geteuid() == 0:
        return
    if os.environ.get("REPRO_TEST_NO_ROOT") == "1":
        pytest.skip("NOT TESTED: a second engine needs root (REPRO_TEST_NO_ROOT=1)")
    pytest.fail("a second engine needs root: run the tests as root, or set REPRO_TEST_NO_ROOT=1 to do without")


def copy_image(client: Any, reference: str) -> str:
    """Bring an image from the engine of the environment into the one of `client`; its id."""
    import docker

    with contextlib.closing(docker.from_env()) as first, tempfile.TemporaryFile() as archive:
        image = first.images.get(reference)  # it may have other names, too, and goes with the one that is asked for
        for block in image.save(named=reference if reference in image.tags else True):
            archive.write(block)
        archive.seek(0)
        return str(client.images.load(archive)[0].id)


def answers(url: str) -> bool:
    """Whether an engine answers there. Not through the SDK, which leaves a socket open for each attempt that fails."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(url.removeprefix("unix://"))
        connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: engine\r\n\r\n")
        return b" 200 " in connection.recv(64)


@contextmanager
def second_engine(
    *,
    gpus: int | None = 2,
    options: Mapping[str, Any] | None = None,
    path: str | None = None,
    host_network: bool = False,
) -> Iterator[SecondEngine]:
    """A started engine; everything of it is gone afterwards.

    `gpus` None: without the shim; `options`: daemon.json; `path`: where its programs are looked for, instead of PATH.
    """
    require_root()
    folder = Path(tempfile.mkdtemp(prefix="engine-"))  # short: a socket's path has 107 bytes
    engine = SecondEngine(folder, gpus=gpus, options=options or {}, path=path, host_network=host_network)
    try:
        engine.start()
        yield engine
    finally:
        engine.dispose()


class SecondEngine:
    """A daemon with all of its state in one folder."""

    def __init__(
        self,
        folder: Path,
        *,
        gpus: int | None,
        options: Mapping[str, Any],
        path: str | None = None,
        host_network: bool = False,
    ) -> None:
        self.folder, self.gpus = folder, gpus
        self.path = path or os.environ.get("PATH", os.defpath)
        self._bridge = f"repro{secrets.token_hex(4)}" if host_network else None
        self.url = f"unix://{folder}/engine.sock"
        self.log = folder / "dockerd.log"
        self._hook_log = folder / "gpu-hook.jsonl"
        self._daemon: subprocess.Popen[bytes] | None = None
        self._client: Any = None
        (folder / "daemon.json").write_text(json.dumps(dict(options)))

    def start(self) -> None:
        """Start the daemon, for the first time or again after `stop` or `kill`; returns when it answers."""
        folder = self.folder
        # A daemon that was killed leaves these; a zombie or a re-used number would block us.
        self._end_processes("containerd", "--config")
        (folder / "dockerd.pid").unlink(missing_ok=True)
        (folder / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)
        # unshare becomes dockerd: what we started is what we stop, and no pid file has to be believed
        argv = ["dockerd"] if self._bridge else ["unshare", "--net", "dockerd"]
        if self._bridge:
            _add_bridge(self._bridge)
            argv.append(f"--bridge={self._bridge}")  # `none` would take the first engine's away
        argv += ["--host", self.url, "--config-file", str(folder / "daemon.json")]
        argv += ["--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")]
        argv += ["--pidfile", str(folder / "dockerd.pid"), "--iptables=false", "--ip6tables=false"]
        with self.log.open("ab") as log:
            self._daemon = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(), start_new_session=True
            )
        self._wait_until_it_answers()

    def stop(self) -> None:
        """End it as an administrator does: its containers are stopped first."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does: its containers go on."""
        self._end(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Suspend it, or let it go on: SIGSTOP, SIGCONT."""
        assert self._daemon is not None
        self._daemon.send_signal(number)

    @property
    def running(self) -> bool:
        """Whether the daemon is there."""
        return self._daemon is not None and self._daemon.poll() is None

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._daemon is not None
        return self._daemon.pid

    def client(self) -> Any:
        """A docker.DockerClient for this engine; closed with it."""
        import docker

        if self._client is None:
            self._client = docker.DockerClient(base_url=self.url, timeout=30)
        return self._client

    def copy_image(self, reference: str) -> str:
        """Bring an image from the engine of the environment into this one; its id."""
        return copy_image(self.client(), reference)

    def gpu_requests(self) -> list[dict[str, Any]]:
        """What reached the GPU hook, oldest first: {"container": id, "env": {"NVIDIA_VISIBLE_DEVICES": ...}}."""
        if not self._hook_log.exists():
            return []
        return [json.loads(line) for line in self._hook_log.read_text().splitlines()]

    def dispose(self) -> None:
        """Remove containers, daemon, mounts and files, whatever state they are in."""
        with contextlib.suppress(Exception):
            if not self.running:
                self.start()  # only a daemon can end the containers that a killed one left
            for container in self.client().containers.list(all=True):
                container.remove(force=True)
        if self._client is not None:
            self._client.close()
        self.stop()
        self._end_processes()
        for mount in sorted(self._mounts(), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
        if self._bridge:
            _remove_bridge(self._bridge)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
        environment["PATH"] = self.path
        if self.gpus is None:
            return environment
        path = [str(SHIM), str(Path(sys.executable).parent), self.path]
        return environment | {
            "PATH": os.pathsep.join(path),
            "FAKE_NVIDIA_LOG": str(self._hook_log),
            "FAKE_NVIDIA_GPUS": str(self.gpus),
        }

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.running and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if answers(self.url):
                    return
            time.sleep(0.1)
        raise AssertionError(f"the second engine does not answer:\n{self.log.read_text()[-3000:]}")

    def _end(self, number: signal.Signals) -> None:
        if self._daemon is None:
            return
        self._daemon.send_signal(number)  # does nothing to a daemon that ended by itself
        try:
            self._daemon.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()

    def _end_processes(self, *beginning: str) -> None:
        """End what outlived its daemon. Only what names our folder on its command line is ours."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                ours = any(argument.startswith(f"{self.folder}/") for argument in command)
                if ours and command[: len(beginning)] == list(beginning):
                    os.kill(int(process.name), signal.SIGKILL)

    def _mounts(self) -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        points = [line.split()[4] for line in lines]
        return [point for point in points if point.startswith(f"{self.folder}/")]


# what `ip link` and `ip address` do, which a machine need not have (linux/sockios.h)
ADD_BRIDGE, REMOVE_BRIDGE, SET_FLAGS, SET_ADDRESS, SET_NETMASK = 0x89A0, 0x89A1, 0x8914, 0x8916, 0x891C


def _add_bridge(name: str) -> None:
    """A bridge with an address of its own, where there is none of this name."""
    if name in (known for _index, known in socket.if_nameindex()):
        return
    address = f"10.213.{secrets.randbelow(254) + 1}.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, ADD_BRIDGE, name.encode() + b"\0")
        for order, value in ((SET_ADDRESS, address), (SET_NETMASK, "255.255.255.0")):
            request = struct.pack("16sHH4s8x", name.encode(), socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(control, order, request)


def _remove_bridge(name: str) -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SET_FLAGS, struct.pack("16sH14x", name.encode(), 0))  # down
        fcntl.ioctl(control, REMOVE_BRIDGE, name.encode() + b"\0")
