"""Push, and pull by digest, with a real registry and a second engine; and every way in which that can fail."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import tarfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker.errors
import msgspec
import pytest

from repro.cleaning import housekeeping, pruning
from repro.engines import registry as registries
from repro.engines.engine import Engine, connect
from repro.errors import EnvironmentUnfitError
from repro.project import Project
from repro.recipe import base
from tests.conftest import commit, script
from tests.newest_engine import STORES, newest_engine
from tests.registry_server import PASSWORD, USER, RegistryServer
from tests.second_engine import SecondEngine, second_engine
from tests.test_experiments_engine import mlflow_run
from tests.test_run_engine import latest

pytestmark = pytest.mark.engine

Repro = Callable[..., "subprocess.CompletedProcess[str]"]
NAME = f"test-registry-{os.getpid()}"  # tests may run in several processes, and each removes its own
BASE = f"test-tiny-{os.getpid()}:1"
DOCKERFILE = "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nCOPY docker/requirements.txt /r.txt\n"


def tiny_base(client: Any, content: bytes = b"base") -> None:
    """BASE on an engine, with `content` in it: a base whose owner may move it."""
    layer, out = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        entry = tarfile.TarInfo("base")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    layer.seek(0)
    base.write_archive(layer, out, BASE, {}, base._architecture())
    client.images.load(out.getvalue())


def clear(client: Any) -> None:
    """Remove what a test made."""
    for image in client.api.images():
        tags, manifest = image["RepoTags"] or [], (image["Labels"] or {}).get("repro.manifest", "")
        ours = [tag for tag in [*tags, *(image["RepoDigests"] or [])] if NAME in tag]
        with suppress(docker.errors.NotFound):  # gone with the one before
            if BASE in tags:
                for tag in ours:
                    client.api.remove_image(tag)
            elif ours or BASE in manifest:  # or it lost its tag to another build
                client.api.remove_image(image["Id"], force=True)
    with suppress(docker.errors.APIError):
        client.api.remove_image(BASE)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    server = RegistryServer(tmp_path_factory.mktemp("registry"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """A registry that wants a user and a password."""
    server = RegistryServer(tmp_path_factory.mktemp("private"), users=True)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def node_engine() -> Iterator[SecondEngine]:
    with second_engine(gpus=None, host_network=True) as engine:
        yield engine


@pytest.fixture
def node(node_engine: SecondEngine) -> Iterator[SecondEngine]:
    """Another machine's engine, without any image of ours."""
    yield node_engine
    clear(node_engine.client())


@pytest.fixture
def shelf(project: Project, engine: Engine, registry: RegistryServer) -> Iterator[Project]:
    """A project with a registry, and an image of a few bytes that nobody has built yet."""
    tiny_base(engine.client)
    (project.docker / "Dockerfile").write_text(DOCKERFILE)
    (project.docker / "requirements.txt").write_text(f"# {uuid.uuid4()}\n")
    configure(project, registry.host)
    yield project
    clear(engine.client)


def configure(project: Project, host: str | None, name: str = BASE) -> None:
    (project.conf / "image").mkdir(exist_ok=True)
    text = f"variant: tensorflow\nname: {NAME}\nbase: {name}\n" + (f"registry: {host}\n" if host else "")
    (project.conf / "image" / "tensorflow.yaml").write_text(text)


def locked(project: Project) -> dict[str, Any]:
    return dict(msgspec.toml.decode(project.lock.read_bytes())["image"]["tensorflow"])


def pushed(repro: Repro, **environment: str) -> str:
    """The digest of the image, after it was pushed."""
    done = repro("rebuild", "--push", **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[1]


def docker_config(folder: Path, host: str, password: str) -> str:
    """A DOCKER_CONFIG as `docker login` leaves it."""
    folder.mkdir()
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    return str(folder)


# push -----------------------------------------------------------------------------------------------------------


def test_a_pushed_image_is_in_the_registry_and_its_digest_in_the_lock(
    shelf: Project, repro: Repro, registry: RegistryServer
) -> None:
    digest = pushed(repro)
    name, _, sha256 = digest.partition("@")
    assert name == f"{registry.host}/{NAME}"
    assert locked(shelf)["digest"] == digest
    assert registry.tags(NAME)[locked(shelf)["spec"][:16]] == sha256


def test_what_the_registry_has_already_is_not_sent_again(
    shelf: Project, repro: Repro, registry: RegistryServer
) -> None:
    digest, lock = pushed(repro), shelf.lock.read_bytes()
    before = len(registry.requests())
    assert pushed(repro) == digest
    assert shelf.lock.read_bytes() == lock
    assert not [line for line in registry.requests()[before:] if not line.startswith(("GET", "HEAD"))]


def test_a_lock_that_knows_a_digest_keeps_it_when_nothing_changes(shelf: Project, repro: Repro) -> None:
    pushed(repro)
    lock = shelf.lock.read_bytes()
    assert repro("rebuild").returncode == 0
    assert shelf.lock.read_bytes() == lock


def test_the_digest_is_the_one_of_the_configured_registry_or_none(shelf: Project, repro: Repro) -> None:
    digest = pushed(repro)
    for host, found in (("127.0.0.1:1", None), (None, digest)):
        configure(shelf, host)
        assert json.loads(repro("rebuild", "--json").stdout)["digest"] == found


def test_another_build_of_the_spec_with_equal_content_counts_as_the_same(shelf: Project, repro: Repro) -> None:
    digest, image = pushed(repro), locked(shelf)["id"]
    assert repro("rebuild", "--no-cache").returncode == 0
    assert locked(shelf)["id"] != image
    assert "digest" not in locked(shelf)
    assert pushed(repro) == digest
    assert (locked(shelf)["digest"], locked(shelf)["id"]) == (digest, image)  # of one image


def test_an_image_with_other_content_never_replaces_a_tag_in_silence(
    shelf: Project, repro: Repro, registry: RegistryServer, node: SecondEngine
) -> None:
    digest = pushed(repro)
    tiny_base(node.client(), b"moved")
    assert repro("rebuild", "--no-pull", DOCKER_HOST=node.url).returncode == 0
    other = locked(shelf)["id"]
    done = repro("rebuild", "--push", DOCKER_HOST=node.url)
    assert done.returncode == 4
    assert "has another image in the registry" in done.stderr
    assert digest in done.stderr
    assert other in done.stderr
    assert "--push --force" in done.stderr
    assert digest.endswith(registry.tags(NAME)[locked(shelf)["spec"][:16]])
    assert len(node.client().images.list(NAME)) == 1  # what was looked at is gone again
    assert node.client().images.list(f"{registry.host}/{NAME}") == []

    done = repro("rebuild", "--push", "--force", DOCKER_HOST=node.url)
    assert done.returncode == 0, done.stderr
    assert locked(shelf)["digest"].endswith(registry.tags(NAME)[locked(shelf)["spec"][:16]])
    assert locked(shelf)["digest"] != digest


# pull -----------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_pulled_by_the_digest_in_the_lock(
    shelf: Project, repro: Repro, node: SecondEngine, registry: RegistryServer
) -> None:
    digest, image = pushed(repro), locked(shelf)["id"]
    lock = shelf.lock.read_bytes()
    done = repro("rebuild", "-v", DOCKER_HOST=node.url)  # the base is not there: it could not be built
    assert done.returncode == 0, done.stderr
    assert f"pulling {digest}" in done.stderr
    assert "pulled\n" in done.stderr
    assert node.client().images.get(image).attrs["RepoDigests"] == [digest]
    assert shelf.lock.read_bytes() == lock
    assert not [line for line in registry.requests() if line.startswith("GET") and f"manifests/{image[7:23]}" in line]


def test_a_run_on_another_machine_has_the_digest_in_its_record_and_in_mlflow(
    lab: Project, repro: Repro, engine: Engine, node: SecondEngine, registry: RegistryServer, debian_base: str
) -> None:
    (lab.docker / "Dockerfile").write_text(f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\nENV AT={uuid.uuid4()}\n")
    configure(lab, registry.host, debian_base)
    script(lab, "toy.sh", "echo hello")
    digest = pushed(repro)
    commit(lab.root)
    clear(engine.client)
    done = repro("run", "--locked", "experiment=toy", "gpus=none", "tracking.wait=60", DOCKER_HOST=node.url)
    assert done.returncode == 0, done.stderr
    record, _folder = latest(lab)
    assert record.planned.image.digest == digest
    tags = mlflow_run(lab, record).data.tags
    assert tags["image_digest"] == tags["mlflow.docker.image.uri"] == digest


def test_no_pull_builds_here_and_says_that_the_lock_changes(shelf: Project, repro: Repro, node: SecondEngine) -> None:
    digest = pushed(repro)
    tiny_base(node.client(), b"moved")
    done = repro("rebuild", "--no-pull", DOCKER_HOST=node.url)
    assert done.returncode == 0, done.stderr
    assert " built" in done.stderr
    assert f"repro.lock named {digest}" in done.stderr
    assert "digest" not in locked(shelf)


def test_pull_without_a_digest_takes_what_the_tag_names_and_locks_it(
    shelf: Project, repro: Repro, node: SecondEngine
) -> None:
    digest = pushed(repro)
    shelf.lock.unlink()
    done = repro("rebuild", "--pull", DOCKER_HOST=node.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == digest
    assert locked(shelf)["digest"] == digest


def test_without_a_digest_in_the_lock_a_plain_rebuild_asks_no_registry(
    shelf: Project, repro: Repro, registry: RegistryServer
) -> None:
    before = len(registry.requests())
    assert repro("rebuild").returncode == 0
    assert registry.requests()[before:] == []


def test_a_registry_under_another_name_serves_the_same_digest(
    shelf: Project, repro: Repro, node: SecondEngine, registry: RegistryServer
) -> None:
    pushed(repro)
    lock = shelf.lock.read_bytes()
    configure(shelf, f"localhost:{registry.port}")
    done = repro("rebuild", "--json", DOCKER_HOST=node.url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"].startswith(f"localhost:{registry.port}/{NAME}@")
    assert shelf.lock.read_bytes() == lock


@pytest.mark.parametrize("store", STORES)
def test_the_newest_engine_pulls_what_an_old_one_pushed_and_the_other_way_round(
    shelf: Project, repro: Repro, engine: Engine, store: str
) -> None:
    digest, first = pushed(repro), engine.client.images.get(f"{NAME}:{_tag(shelf)}")
    with newest_engine(store, host_network=True) as newest:  # type: ignore[arg-type]
        done = repro("rebuild", DOCKER_HOST=newest.url)
        assert done.returncode == 0, done.stderr
        there = newest.client().images.get(f"{NAME}:{_tag(shelf)}")
        assert there.attrs["RootFS"]["Layers"] == first.attrs["RootFS"]["Layers"]
        assert locked(shelf)["digest"] == digest
        assert repro("rebuild", "--push", DOCKER_HOST=newest.url).stdout.splitlines()[1] == digest
        tiny_base(newest.client(), b"new")
        (shelf.docker / "requirements.txt").write_text(f"# {uuid.uuid4()}\n")
        digest = pushed(repro, DOCKER_HOST=newest.url)
        layers = newest.client().images.get(f"{NAME}:{_tag(shelf)}").attrs["RootFS"]["Layers"]
    done = repro("rebuild")
    assert done.returncode == 0, done.stderr
    assert " pulled" in done.stderr
    here = engine.client.images.get(f"{NAME}:{_tag(shelf)}").attrs
    assert (here["RepoDigests"], here["RootFS"]["Layers"]) == ([digest], layers)


def _tag(project: Project) -> str:
    return str(locked(project)["spec"][:16])


def test_prune_removes_every_name_of_a_pushed_image(
    shelf: Project, repro: Repro, engine: Engine, registry: RegistryServer
) -> None:
    pushed(repro)
    image, tag = locked(shelf)["id"], f"{NAME}:{_tag(shelf)}"
    engine.tag(image, f"{registry.host}/team/{tag}")
    assert repro("images").stdout.count(tag) == 1
    shelf.lock.unlink()
    removals = json.loads(repro("prune", "--json").stdout)["removed"]
    removal = next(each for each in removals if each["name"] == tag)
    pruning.carry_out(engine, [msgspec.convert(removal, housekeeping.Removal)])
    assert engine.image(image) is None


# failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--push", "--pull"])
def test_without_a_registry_the_flags_say_what_to_set(shelf: Project, repro: Repro, flag: str) -> None:
    configure(shelf, None)
    done = repro("rebuild", flag)
    assert done.returncode == 2
    assert "image.registry" in done.stderr
    assert "export-image" in done.stderr


def test_a_registry_that_is_down_is_no_reason_to_build(
    shelf: Project, repro: Repro, node: SecondEngine, tmp_path: Path
) -> None:
    server = RegistryServer(tmp_path / "own")
    configure(shelf, server.host)
    pushed(repro)
    lock = shelf.lock.read_bytes()
    server.stop()
    tiny_base(node.client())
    for command in (["rebuild"], ["rebuild", "--pull"], ["run", "experiment=toy", "tracking.enabled=false"]):
        done = repro(*command, DOCKER_HOST=node.url)
        assert done.returncode == 3, done.stderr
        assert f"{server.host} cannot be reached" in done.stderr
        if "--pull" not in command:
            assert "`repro rebuild --no-pull` builds it here" in done.stderr
    assert node.client().images.list(NAME) == []
    assert shelf.lock.read_bytes() == lock
    done = repro("rebuild", "--push")
    assert (done.returncode, f"{server.host} cannot be reached" in done.stderr) == (3, True)
    assert repro("rebuild").returncode == 0  # what is present needs no registry


def test_a_digest_is_never_invented(shelf: Project, repro: Repro) -> None:
    """The containerd store lists one for every tag, whether a registry has seen the image or not."""
    with newest_engine("containerd", host_network=True) as newest:
        tiny_base(newest.client())
        configure(shelf, "127.0.0.1:1")
        assert repro("rebuild", "--push", DOCKER_HOST=newest.url).returncode == 3
        assert "digest" not in locked(shelf)
        for host in ("127.0.0.1:1", None):
            configure(shelf, host)
            done = repro("rebuild", "--json", DOCKER_HOST=newest.url)
            assert json.loads(done.stdout)["digest"] is None, done.stdout
        assert "digest" not in locked(shelf)


@pytest.mark.parametrize("patient", [True, False])
def test_a_registry_that_takes_its_time_is_waited_for_where_bytes_are_moved(
    shelf: Project, repro: Repro, registry: RegistryServer, patient: bool
) -> None:
    pushed(repro)
    slow, tag = connect(timeout=2), f"{registry.host}/{NAME}:{_tag(shelf)}"
    assert registry.process is not None
    again = threading.Timer(5, registry.process.send_signal, [signal.SIGCONT])
    registry.process.send_signal(signal.SIGSTOP)
    again.start()
    try:
        if patient:
            assert locked(shelf)["digest"].endswith(registries.push(slow, tag, lambda _line: None))
        else:
            with pytest.raises(EnvironmentUnfitError) as caught:
                registries.look(slow, tag)
            assert f"{registry.host} cannot be reached" in caught.value.what
    finally:
        again.join()
        slow.client.close()


def test_a_digest_that_is_gone_is_told_as_that(
    shelf: Project, repro: Repro, registry: RegistryServer, node: SecondEngine
) -> None:
    digest = pushed(repro)
    registry.delete(digest)
    done = repro("rebuild", DOCKER_HOST=node.url)
    assert done.returncode == 3
    assert f"{digest} cannot be pulled" in done.stderr
    assert "its digest is gone" in done.stderr
    assert "--no-pull" in done.stderr


def test_a_tag_that_is_not_there_is_told_as_that(shelf: Project, repro: Repro, registry: RegistryServer) -> None:
    done = repro("rebuild", "--pull")
    assert done.returncode == 3
    assert re.search(rf"{registry.host}/{NAME}:[0-9a-f]{{16}} is not in the registry", done.stderr)
    assert "--push" in done.stderr


def test_a_tag_that_was_moved_is_told_and_taken_only_by_force(shelf: Project, repro: Repro, node: SecondEngine) -> None:
    first = pushed(repro)
    lock = shelf.lock.read_bytes()
    tiny_base(node.client(), b"moved")
    assert repro("rebuild", "--no-pull", DOCKER_HOST=node.url).returncode == 0
    assert repro("rebuild", "--push", "--force", DOCKER_HOST=node.url).returncode == 0
    second = locked(shelf)["digest"]
    clear(node.client())
    shelf.lock.write_bytes(lock)

    done = repro("rebuild", "--pull", DOCKER_HOST=node.url)
    assert done.returncode == 4
    assert "was moved" in done.stderr
    assert first in done.stderr
    assert second in done.stderr
    assert repro("rebuild", DOCKER_HOST=node.url).returncode == 0  # by digest, whatever the tag says
    assert locked(shelf)["digest"] == first
    assert repro("rebuild", "--pull", "--force", DOCKER_HOST=node.url).returncode == 0
    assert locked(shelf)["digest"] == second


def test_an_image_of_another_spec_under_the_tag_is_refused(
    shelf: Project, repro: Repro, engine: Engine, registry: RegistryServer, node: SecondEngine
) -> None:
    repro("rebuild")
    tag = f"{registry.host}/{NAME}:{_tag(shelf)}"
    engine.tag(BASE, tag)
    engine.client.api.push(tag.rpartition(":")[0], tag.rpartition(":")[2])
    shelf.lock.unlink()
    done = repro("rebuild", "--pull", DOCKER_HOST=node.url)
    assert done.returncode == 3
    assert "is not the image of" in done.stderr
    assert "label repro.spec: none" in done.stderr
    assert node.client().images.list(f"{registry.host}/{NAME}") == []
    assert not shelf.lock.exists()


# credentials ----------------------------------------------------------------------------------------------------


def test_a_registry_with_users_takes_who_is_logged_in(
    shelf: Project, repro: Repro, private: RegistryServer, node: SecondEngine, tmp_path: Path
) -> None:
    configure(shelf, private.host)
    login = docker_config(tmp_path / "login", private.host, PASSWORD)
    digest = pushed(repro, DOCKER_CONFIG=login)
    done = repro("rebuild", "-v", DOCKER_CONFIG=login, DOCKER_HOST=node.url)
    assert done.returncode == 0, done.stderr
    assert node.client().images.get(digest).attrs["RepoDigests"] == [digest]
    assert PASSWORD not in done.stderr + done.stdout + shelf.lock.read_text()


@pytest.mark.parametrize("key", ["credsStore", "credHelpers"])
def test_credentials_may_come_from_a_helper(
    shelf: Project, repro: Repro, private: RegistryServer, tmp_path: Path, key: str
) -> None:
    configure(shelf, private.host)
    (tmp_path / "bin").mkdir()
    helper = tmp_path / "bin" / "docker-credential-test"
    answer = json.dumps({"ServerURL": private.host, "Username": USER, "Secret": PASSWORD})
    helper.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{answer}'\n")
    helper.chmod(0o755)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({key: "test" if key == "credsStore" else {private.host: "test"}}))
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    assert pushed(repro, DOCKER_CONFIG=str(tmp_path), PATH=path).startswith(f"{private.host}/{NAME}@")

    helper.write_text("#!/bin/sh\ncat >/dev/null\necho locked >&2\nexit 1\n")
    done = repro("rebuild", "--push", DOCKER_CONFIG=str(tmp_path), PATH=path)
    assert done.returncode == 3, done.stderr
    assert f"the credentials for {private.host} cannot be had" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("password", [None, "wrong secret"])
def test_who_is_not_known_is_told_how_to_log_in(
    shelf: Project, repro: Repro, private: RegistryServer, node: SecondEngine, tmp_path: Path, password: str | None
) -> None:
    configure(shelf, private.host)
    digest = pushed(repro, DOCKER_CONFIG=docker_config(tmp_path / "login", private.host, PASSWORD))
    config = docker_config(tmp_path / "other", private.host if password else "elsewhere:1", password or "x")
    for command, host in ((["rebuild", "--push"], None), (["rebuild", "--pull"], None), (["rebuild"], node.url)):
        done = repro(*command, DOCKER_CONFIG=config, **({"DOCKER_HOST": host} if host else {}))
        assert done.returncode == 3, done.stderr
        assert f"`docker login {private.host}`" in done.stderr
        assert "does not accept your credentials, or wants some" in done.stderr
        assert "wrong secret" not in done.stderr
    assert locked(shelf)["digest"] == digest


@pytest.mark.parametrize("auth", ["%%%", "YWJj", "//79"])
def test_damaged_credentials_are_not_taken_for_an_engine_that_is_down(
    shelf: Project, repro: Repro, tmp_path: Path, auth: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"reg.example.com": {"auth": auth}}}))
    done = repro("rebuild", "--push", DOCKER_CONFIG=str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert "`docker login`" in done.stderr
    assert auth not in done.stderr


@pytest.mark.parametrize(("tls", "said"), [(False, "insecure-registries"), (True, "/etc/docker/certs.d/")])
def test_a_registry_that_the_engine_does_not_trust_is_told_with_the_file_to_change(
    shelf: Project, repro: Repro, node: SecondEngine, tmp_path: Path, tls: bool, said: str
) -> None:
    """At an address that is not of the loopback network, which engines trust as it is."""
    bridge = node.client().networks.get("bridge").attrs["IPAM"]["Config"][0]
    address = bridge.get("Gateway") or bridge["Subnet"].replace(".0/24", ".1")
    server = RegistryServer(tmp_path / "own", address=address, tls=tls)
    configure(shelf, server.host)
    tiny_base(node.client())
    for flag in ("--push", "--pull"):
        done = repro("rebuild", flag, DOCKER_HOST=node.url)
        assert done.returncode == 3, done.stderr
        assert said in done.stderr
        assert server.host in done.stderr
    server.stop()
    assert node.client().images.list(f"{server.host}/{NAME}") == []
