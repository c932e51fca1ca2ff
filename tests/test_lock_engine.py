"""`repro lock` and builds from it, as a user has them: a real engine, a real package index."""

from __future__ import annotations

import hashlib
import json
import os
import re
import ssl
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from repro import lockfile
from repro.engines import registry
from repro.engines.engine import Engine
from repro.project import Project
from tests.conftest import use_base
from tests.registry_server import RegistryServer

pytestmark = pytest.mark.engine

Repro = Callable[..., subprocess.CompletedProcess[str]]
DOCKERFILE = """\
ARG BASE_IMAGE
FROM ${BASE_IMAGE} AS made
COPY from-host /tmp/from-host
COPY docker/requirements.txt /tmp/requirements.txt
RUN python3 -m venv /opt/venv \\
    && PIP_CONFIG_FILE=/tmp/from-host/pip.conf /opt/venv/bin/pip install --no-cache-dir -r /tmp/requirements.txt
FROM ${BASE_IMAGE}
COPY --from=made /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
"""


@pytest.fixture
def locker(project: Project, engine: Engine, debian_base: str) -> Iterator[Project]:
    """A project whose image installs two small packages, with names of its own on the engine."""
    name = f"test-lock-{os.getpid()}"
    use_base(project, debian_base)
    with (project.conf / "image" / "tensorflow.yaml").open("a") as file:
        file.write(f"name: {name}\n")
    (project.docker / "Dockerfile").write_text(DOCKERFILE)
    (project.docker / "requirements.txt").write_text("iniconfig\npackaging<25\n")
    yield project
    for found in engine.client.api.images(name):
        for tag in found["RepoTags"] or ():
            engine.remove_image(tag)


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def versions(engine: Engine, image: str) -> dict[str, str]:
    answer = engine.client.containers.run(
        image,
        ["/opt/venv/bin/pip", "list", "--format=json"],
        network_mode="none",
        remove=True,
        environment={"PIP_NO_INDEX": "1"},
    )
    return {each["name"]: each["version"] for each in json.loads(answer)}


def test_a_lock_pins_the_base_and_every_package_and_the_build_takes_them(
    locker: Project, repro: Repro, engine: Engine, debian_base: str, any_builder: str
) -> None:
    assert "floating: base, 2 packages" in ok(repro("rebuild"))
    (locker.docker / "requirements.txt").write_text("iniconfig\npackaging<25\n# as of then\n")
    said = ok(repro("lock", "--as-of", "2023-06-30"))
    assert "1 image, 2 packages" in said
    assert "floating" not in said
    resolved = lockfile.read(locker.lock).resolved["tensorflow"]
    held = engine.image(debian_base)
    assert held is not None
    assert resolved.images == {debian_base: held.id}
    assert (resolved.as_of, resolved.pylock) == ("2023-06-30T00:00:00Z", "pylock.tensorflow.toml")
    assert re.fullmatch(r"3\.11\.\d+", resolved.python or "")
    assert re.fullmatch(r"glibc 2\.\d+", resolved.libc or "")
    made = json.loads(ok(repro("rebuild", "--json")))
    assert (made["built"], made["floating"]) == (True, [])
    found = versions(engine, made["id"])
    assert (found["iniconfig"], found["packaging"]) == ("2.0.0", "23.1")  # the newest of that day
    assert json.loads(ok(repro("rebuild", "--if-changed", "--json")))["tag"] == made["tag"]


def test_a_lock_is_checked_offline_and_says_what_is_stale(locker: Project, repro: Repro) -> None:
    offline = {"DOCKER_HOST": "unix:///nothing.sock", "UV_OFFLINE": "1", "PIP_INDEX_URL": "http://127.0.0.1:9"}
    before = repro("lock", "--check", **offline)
    assert (before.returncode, "not resolved yet" in before.stdout) == (1, True)
    ok(repro("lock"))
    assert "up to date" in ok(repro("lock", "--check", **offline))
    assert "up to date" in ok(repro("lock", **offline))  # nothing to do needs nothing
    (locker.docker / "requirements.txt").write_text("iniconfig\n")
    after = repro("lock", "--check", "--json", **offline)
    assert after.returncode == 1
    assert json.loads(after.stdout)["stale"] == ["docker/requirements.txt: changed"]
    unlocked = repro("rebuild", "--check")
    assert "repro.lock is stale and does not count: docker/requirements.txt: changed" in unlocked.stderr
    refused = repro("run", "experiment=toy", "--locked")
    assert (refused.returncode, "docker/requirements.txt: changed" in refused.stderr) == (4, True)


def test_versions_stay_until_an_upgrade_is_asked_for(locker: Project, repro: Repro) -> None:
    ok(repro("lock", "--as-of", "2023-06-30"))
    (locker.docker / "requirements.txt").write_text("iniconfig\npackaging<25\nattrs\n")
    assert "  attrs (new) -> " in ok(repro("lock"))
    assert "  packaging 23.1 -> 24.2" in ok(repro("lock", "--upgrade", "packaging"))
    text = (locker.root / "pylock.tensorflow.toml").read_text()
    assert 'name = "iniconfig"\nversion = "2.0.0"' in text
    assert re.search(r"  iniconfig 2\.0\.0 -> 2\.[1-9]", ok(repro("lock", "--upgrade")))


def test_a_password_in_a_requirement_does_not_get_into_the_lock(locker: Project, repro: Repro, wheel: str) -> None:
    named = wheel.replace("://", "://bob:${WORD}@")
    (locker.docker / "requirements.txt").write_text(f"inspected @ {named}\n")
    refused = repro("lock", WORD="hunter2")
    assert (refused.returncode, "would hold a password" in refused.stderr) == (2, True)
    assert "hunter2" not in refused.stderr
    assert not list(locker.root.glob("pylock.*"))


def test_an_override_behind_upgrade_is_no_package(locker: Project, repro: Repro) -> None:
    (locker.docker / "requirements.txt").write_text("")
    variant = (locker.conf / "image" / "tensorflow.yaml").read_text()
    (locker.conf / "image" / "other.yaml").write_text(variant.replace("variant: tensorflow", "variant: other"))
    assert "repro.lock  other  1 image" in ok(repro("lock", "--upgrade", "image=other"))
    assert list(lockfile.read(locker.lock).resolved) == ["other"]


def test_requirements_that_contradict_leave_the_lock_as_it_was(locker: Project, repro: Repro) -> None:
    ok(repro("lock"))
    before = {path.name: path.read_bytes() for path in locker.root.iterdir() if path.is_file()}
    (locker.docker / "requirements.txt").write_text("packaging<25\npackaging>=25\n")
    refused = repro("lock")
    assert refused.returncode == 2
    assert "docker/requirements.txt cannot be resolved" in refused.stderr
    assert "packaging" in refused.stderr
    assert {path.name: path.read_bytes() for path in locker.root.iterdir() if path.is_file()} == before


def test_an_index_that_is_away_is_another_error_than_a_contradiction(locker: Project, repro: Repro) -> None:
    refused = repro(
        "lock", UV_DEFAULT_INDEX="http://user:hunter2@127.0.0.1:9/simple", UV_NO_CACHE="1", UV_HTTP_RETRIES="0"
    )
    assert refused.returncode == 3
    assert "the package index does not answer" in refused.stderr
    assert "hunter2" not in refused.stderr


def test_a_base_that_moved_is_not_taken_while_the_locked_one_is_there(
    locker: Project, repro: Repro, engine: Engine, debian_base: str, any_builder: str
) -> None:
    mine = f"test-lock-base-{os.getpid()}:1"
    (locker.docker / "requirements.txt").write_text("")
    (locker.docker / "Dockerfile").write_text(
        "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN cat /which 2>/dev/null || true\n"
    )
    use_base(locker, mine)
    first, second = (_derived(engine, debian_base, mine, word) for word in ("one", "two"))
    engine.tag(first, mine)
    try:
        ok(repro("lock"))
        engine.tag(second, mine)
        made = json.loads(ok(repro("rebuild", "--json")))
        assert (made["base_resolved"], made["floating"]) == (first, [])
        assert "two -> " not in ok(repro("lock", "--check"))
        moved = ok(repro("lock", "--upgrade"))
        assert f"  {mine} {first} -> {second}" in moved
        assert repro("rebuild", "--check").returncode == 1  # what is there stands on the old one
        made = json.loads(ok(repro("rebuild", "--json")))
        assert (made["built"], made["base_resolved"]) == (True, second)
    finally:
        for base in (first, second):
            for found in engine.client.api.images(filters={"label": f"repro.base={base}"}):
                engine.remove_image(found["Id"], force=True)
        for ref in (mine, f"repro-pin:{first[7:23]}", first, second):
            if engine.image(ref):
                engine.remove_image(ref, force=True)


def test_another_image_behind_copy_from_makes_the_image_out_of_date_when_the_lock_takes_it(
    locker: Project, repro: Repro, engine: Engine, debian_base: str, any_builder: str
) -> None:
    tools = f"test-lock-{os.getpid()}:tools"
    (locker.docker / "requirements.txt").write_text("")
    lines = f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\nCOPY --from={tools} /etc/debian_version /copied\n"
    (locker.docker / "Dockerfile").write_text(lines)
    first, second = (_derived(engine, debian_base, tools, word) for word in ("one", "two"))
    engine.tag(first, tools)
    try:
        ok(repro("lock"))
        made = json.loads(ok(repro("rebuild", "--json")))
        assert json.loads(engine.client.api.inspect_image(made["id"])["Config"]["Labels"]["repro.taken"]) == {
            tools: first
        }
        engine.tag(second, tools)
        assert "up to date" in ok(repro("rebuild", "--check"))  # the lock has not moved
        ok(repro("lock", "--upgrade"))
        assert repro("rebuild", "--check").returncode == 1
        assert f"repro.lock  {tools} sha256:" in repro("rebuild", "--explain").stdout
        assert json.loads(ok(repro("rebuild", "--json")))["built"]
        assert "up to date" in ok(repro("rebuild", "--check"))
    finally:
        for ref in (f"repro-pin:{first[7:23]}", f"repro-pin:{second[7:23]}"):
            if engine.image(ref):
                engine.remove_image(ref)


def _derived(engine: Engine, base: str, tag: str, word: str) -> str:
    """An image on top of another, different by a label."""
    container = engine.client.api.create_container(base, ["true"])["Id"]
    try:
        name, _, version = tag.partition(":")
        made = engine.client.api.commit(container, name, f"{version}-{word}", changes=[f"LABEL which={word}"])
        return str(made["Id"])
    finally:
        engine.remove(container)


def test_images_of_a_registry_become_digests_and_a_build_fetches_these(
    locker: Project, repro: Repro, engine: Engine, debian_base: str, tmp_path: Path, any_builder: str
) -> None:
    """A base and a `COPY --from=` whose tags move after they were locked; the engine holds neither any more."""
    server = RegistryServer(tmp_path / "registry")
    names = [f"{server.host}/{name}:1" for name in ("base", "tools")]
    pushed = {}
    made: list[str] = []
    try:
        for name in names:
            for word in ("one", "two"):  # the second one takes the tag when the first is locked
                mark = word + name.rpartition("/")[2].partition(":")[0]
                made.append(_derived(engine, debian_base, f"test-lock-{os.getpid()}:x", mark))
                engine.tag(made[-1], name)
                if word == "one":
                    pushed[name] = registry.push(engine, name, print)
        use_base(locker, names[0])
        (locker.docker / "requirements.txt").write_text("")
        lines = f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\nCOPY --from={names[1]} /etc/debian_version /copied\n"
        (locker.docker / "Dockerfile").write_text(lines)
        for name in names:
            engine.remove_image(name)
        assert "2 images" in ok(repro("lock"))
        pins = lockfile.read(locker.lock).resolved["tensorflow"].images
        assert pins == {name: f"{name[:-2]}@{pushed[name]}" for name in names}
        for number, name in enumerate(names):
            engine.tag(made[2 * number + 1], name)
            registry.push(engine, name, print)
            engine.remove_image(name)
        built = json.loads(ok(repro("rebuild", "--json")))
        assert (built["base_resolved"], built["floating"]) == (pins[names[0]], [])
        labels = engine.client.api.inspect_image(built["id"])["Config"]["Labels"]
        assert labels["which"] == "onebase"
        moved = ok(repro("lock", "--upgrade"))
        assert f"  {names[0]} {pins[names[0]]} -> {names[0][:-2]}@sha256:" in moved
    finally:
        server.stop()
        for found in engine.client.api.images():
            for name in [*(found["RepoTags"] or []), *(found["RepoDigests"] or [])]:
                if server.host in name and engine.image(name):
                    engine.remove_image(name)


# without a network -----------------------------------------------------------------------------------------------


def test_a_locked_image_builds_without_a_network_and_keeps_no_wheel(
    locker: Project, repro: Repro, engine: Engine, any_builder: str
) -> None:
    refused = repro("rebuild", "build.network=none")
    assert (refused.returncode, "have to come from a lock" in refused.stderr) == (2, True)
    ok(repro("lock"))
    made = json.loads(ok(repro("rebuild", "build.network=none", "--json")))
    assert made["built"]
    assert {"iniconfig", "packaging"} <= set(versions(engine, made["id"]))
    answer = engine.client.containers.run(
        made["id"],
        ["find", "/", "-xdev", "-name", "*.whl", "-o", "-name", "from-host"],
        network_mode="none",
        remove=True,
    )
    assert [
        line for line in answer.decode().splitlines() if "ensurepip" not in line and "python-wheels" not in line
    ] == []
    history = json.dumps(engine.client.api.history(made["id"]))
    assert "wheels" not in history


# secrets and authorities -----------------------------------------------------------------------------------------

SECRET = "RUN --mount=type=secret,id=token echo got:$(cat /run/secrets/token); sha256sum /run/secrets/token >/digest\n"


def test_a_secret_reaches_its_step_and_nothing_else(buildx: str, locker: Project, repro: Repro, engine: Engine) -> None:
    (locker.docker / "requirements.txt").write_text("")
    (locker.docker / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n" + SECRET)
    word = "hunter2-" + os.urandom(6).hex()
    arguments = ("rebuild", "+build.secrets.token.env=TOKEN", "-v", "--no-cache")
    unset = repro(*arguments)
    assert (unset.returncode, "TOKEN is not set" in unset.stderr) == (2, True)
    done = repro(*arguments, TOKEN=word)
    ok(done)
    assert "got:***" in done.stderr
    made = lockfile.read(locker.lock).images["tensorflow"]
    digest = engine.client.containers.run(made.id, ["cat", "/digest"], network_mode="none", remove=True)
    assert digest.decode().split()[0] == hashlib.sha256(word.encode()).hexdigest()
    kept = [path.read_bytes() for path in locker.root.rglob("*") if path.is_file()]
    kept.append(json.dumps([engine.client.api.history(made.id), engine.client.api.inspect_image(made.id)]).encode())
    assert not any(word.encode() in content for content in [*kept, done.stdout.encode(), done.stderr.encode()])
    other = json.loads(ok(repro("rebuild", "+build.secrets.token.env=TOKEN", "--json", TOKEN="another")))
    assert (other["id"], other["built"]) == (made.id, False)


def test_a_failing_step_does_not_tell_its_secret(locker: Project, repro: Repro, buildx: str) -> None:
    (locker.docker / "requirements.txt").write_text("")
    step = "RUN --mount=type=secret,id=token cat /run/secrets/token; exit 3\n"
    (locker.docker / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n" + step)
    (locker.root / "token").write_text("hunter2-in-a-file\n")
    (locker.root / ".gitignore").write_text("token\n")
    refused = repro("rebuild", "+build.secrets.token.file=token")
    assert refused.returncode == 2
    assert "docker/Dockerfile:3" in refused.stderr
    assert "***" in refused.stderr
    assert "hunter2" not in refused.stderr + refused.stdout
    logs = list((locker.scratch / "logs").glob("build-*.log"))
    assert logs
    assert not any(b"hunter2" in log.read_bytes() for log in logs)


def _index(tmp_path: Path) -> Path:
    """A folder that is a package index with one small package."""
    folder = tmp_path / "index"
    (folder / "inspected").mkdir(parents=True)
    name = "inspected-1.0-py3-none-any.whl"
    with zipfile.ZipFile(folder / "inspected" / name, "w") as wheel:
        wheel.writestr("inspected.py", "")
        wheel.writestr("inspected-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: inspected\nVersion: 1.0\n")
        wheel.writestr(
            "inspected-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("inspected-1.0.dist-info/RECORD", "")
    (folder / "inspected" / "index.html").write_text(f'<a href="{name}">{name}</a>')
    return folder


@pytest.fixture
def wheel(tmp_path: Path) -> Iterator[str]:
    """The address of a wheel."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(_index(tmp_path)))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/inspected/inspected-1.0-py3-none-any.whl"
        server.shutdown()
        thread.join()


@pytest.fixture
def tls_index(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a package index that only its own authority vouches for, and the file with that authority."""
    folder = _index(tmp_path)
    authority, key = tmp_path / "authority.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(authority)]
    subprocess.run(make, check=True, capture_output=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        secure.load_cert_chain(authority, key)
        server.socket = secure.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}", authority
        server.shutdown()
        thread.join()


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_network_that_inspects_tls_needs_its_authority_and_leaves_none_in_the_image(
    locker: Project, repro: Repro, engine: Engine, tls_index: tuple[str, Path], any_builder: str
) -> None:
    address, authority = tls_index
    install = (
        "RUN python3 -m venv /opt/venv && PIP_CONFIG_FILE=/tmp/from-host/pip.conf"
        f" /opt/venv/bin/pip install --index-url {address} --retries 0 inspected\n"
    )
    (locker.docker / "Dockerfile").write_text(
        f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}} AS made\nCOPY from-host /tmp/from-host\n{install}"
        "FROM ${BASE_IMAGE}\nCOPY --from=made /opt/venv /opt/venv\n"
    )
    refused = repro("rebuild", "build.network=host")
    assert refused.returncode == 2
    assert "certificate verify failed" in refused.stderr.lower()
    made = json.loads(ok(repro("rebuild", "build.network=host", f"build.ca_bundle={authority}", "--json")))
    assert "inspected" in versions(engine, made["id"])
    line = authority.read_text().splitlines()[3]
    search = ["sh", "-c", f"! grep -rlF '{line}' /opt /etc /usr /tmp /var"]
    engine.client.containers.run(made["id"], search, network_mode="none", remove=True)
    without = json.loads(ok(repro("rebuild", "build.network=host", "--if-changed", "--json")))
    assert without["id" if "id" in without else "tag"] in (made["id"], made["tag"])
