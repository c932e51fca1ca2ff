"""A real registry at a port of this machine: Debian's docker-registry, with its data in a folder of the test's."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import msgspec

from tests.debian import fetched

USER, PASSWORD = "tester", "open sesame"
# bcrypt of the password, which nothing on a bare Debian can compute: what it is worth ends with the test
HTPASSWD = f"{USER}:$2b$05$veu4NOhjsQ.0hyoAz2tGKetL7YxmDyOBgeMHm0dSlJdu95LnJM672\n"
START_SECONDS = 20.0
MANIFESTS = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"


class RegistryServer:
    """A registry; `host` is its name. It starts when it is made, and again after `stop`."""

    def __init__(self, folder: Path, *, users: bool = False, address: str = "127.0.0.1", tls: bool = False) -> None:
        self.folder, self.address = folder, address
        with socket.socket() as free:
            free.bind((address, 0))
            self.port = int(free.getsockname()[1])
        self.host = f"{address}:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        http: dict[str, object] = {"addr": self.host}
        if tls:
            http["tls"] = self._certificate()
        config: dict[str, object] = {
            "version": "0.1",
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
            "http": http,
        }
        if users:
            (folder / "htpasswd").write_text(HTPASSWD)
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
        self.config = folder / "config.yml"
        self.config.write_bytes(msgspec.json.encode(config))  # JSON is YAML, too
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it; returns when it answers."""
        program = fetched("registry", "docker-registry") / "usr" / "bin" / "docker-registry"
        log = self.folder / "log"
        with log.open("ab") as file:
            argv = [str(program), "serve", str(self.config)]
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        deadline = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((self.address, self.port), timeout=1):
                return
            time.sleep(0.05)
        raise AssertionError(f"the registry does not answer:\n{log.read_text()[-3000:]}")

    def stop(self) -> None:
        """End it; what it holds stays."""
        if self.process:
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    def delete(self, repo_digest: str) -> None:
        """Forget a manifest, as an administrator does to make room."""
        name, _, digest = repo_digest.removeprefix(f"{self.host}/").partition("@")
        self._ask("DELETE", f"{name}/manifests/{digest}").close()

    def tags(self, name: str) -> dict[str, str]:
        """Tag -> digest, as the registry itself tells: {} for a repository that it does not know."""
        try:
            with self._ask("GET", f"{name}/tags/list") as answer:
                listed = msgspec.json.decode(answer.read())["tags"] or []
        except urllib.error.HTTPError as error:
            error.close()
            return {}
        found = {}
        for tag in listed:
            with contextlib.suppress(urllib.error.HTTPError), self._ask("HEAD", f"{name}/manifests/{tag}") as answer:
                found[tag] = str(answer.headers["Docker-Content-Digest"])
        return found

    def requests(self) -> list[str]:
        """What it was asked, as it logs it: method and path."""
        lines = (self.folder / "log").read_text().splitlines()
        return [line.split('"')[1] for line in lines if '"' in line and " HTTP/1" in line.split('"')[1]]

    def _ask(self, method: str, path: str) -> contextlib.AbstractContextManager[urllib.request.addinfourl]:
        request = urllib.request.Request(f"http://{self.host}/v2/{path}", method=method, headers={"Accept": MANIFESTS})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy of the user's is not asked
        return opener.open(request, timeout=20)

    def _certificate(self) -> dict[str, str]:
        """A certificate that nobody trusts."""
        files = {"certificate": str(self.folder / "cert.pem"), "key": str(self.folder / "key.pem")}
        argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=test"]
        argv += ["-addext", f"subjectAltName=IP:{self.address}", "-keyout", files["key"], "-out", files["certificate"]]
        subprocess.run(argv, check=True, capture_output=True)
        return files
