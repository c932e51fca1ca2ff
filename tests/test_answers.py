"""Engines say the same thing differently; what we hear is one form."""

from __future__ import annotations

import pytest

from repro.engines import answers, imagefacts

INFO = {"Driver": "overlay", "NCPU": 2, "MemTotal": 8, "Name": "here", "DockerRootDir": "/data", "Runtimes": {}}
DOCKER = {"Version": "28.5.2", "ApiVersion": "1.51", "Os": "linux", "Arch": "amd64"}
PODMAN = {**DOCKER, "Version": "4.3.1", "Components": [{"Name": "Podman Engine"}]}
IMAGE = {"Id": "a" * 64, "RepoTags": ["localhost/my-tf:1"], "RepoDigests": ["localhost/my-tf@sha256:1"]}


def test_podman_is_known_by_its_components_and_its_runtimes_are_no_gpus() -> None:
    info = {**INFO, "Runtimes": {"nvidia": {}}}
    assert (answers.engine_facts(info, PODMAN).product, answers.engine_facts(info, PODMAN).gpus) == ("Podman", "")
    assert (answers.engine_facts(info, DOCKER).product, answers.engine_facts(info, DOCKER).gpus) == ("Docker", "nvidia")


def test_gpus_that_only_cdi_announces_are_asked_for_through_cdi() -> None:
    info = {**INFO, "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}
    assert answers.engine_facts(info, DOCKER).gpus == "cdi"
    assert answers.engine_facts({**info, "DiscoveredDevices": [{"ID": "other.com/nic=0"}]}, DOCKER).gpus == ""


@pytest.mark.parametrize(
    ("gpus", "names"),
    [
        (-1, ["nvidia.com/gpu=all"]),
        (2, ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]),
        (("1", "GPU-12"), ["nvidia.com/gpu=1", "nvidia.com/gpu=GPU-12"]),
        (("other.com/gpu=3",), ["other.com/gpu=3"]),
    ],
)
def test_gpus_have_names_in_cdi(gpus: tuple[str, ...] | int, names: list[str]) -> None:
    assert answers.cdi_names(gpus) == names


def test_rootless_engines_and_limits_that_are_not_kept_are_heard() -> None:
    info = {**INFO, "SecurityOptions": ["name=seccomp,profile=default", "name=rootless"], "MemoryLimit": False}
    facts = answers.engine_facts({**info, "PidsLimit": True}, DOCKER)
    assert (facts.rootless, facts.unlimited) == (True, ("memory",))
    assert answers.engine_facts(INFO, DOCKER).unlimited == ()  # an engine that says nothing is believed


def test_podmans_names_and_ids_become_those_that_docker_has() -> None:
    found = imagefacts.of(IMAGE, podman=True)
    assert (found.id, found.tags, found.digests) == (f"sha256:{'a' * 64}", ("my-tf:1",), ())
    assert imagefacts.of(IMAGE).tags == ("localhost/my-tf:1",)  # a registry of that name
    assert answers.familiar("docker.io/library/debian:12") == "debian:12"
    assert answers.familiar("docker.io/me/x:1") == "me/x:1"
    assert answers.familiar("quay.io/me/x:1") == "quay.io/me/x:1"


def test_digests_that_podman_makes_up_are_no_digests() -> None:
    names = ["docker.io/library/x@sha256:1", "quay.io/me/x@sha256:1"]
    pulled = imagefacts.of({**IMAGE, "RepoDigests": names}, podman=True)
    assert pulled.digests == ("x@sha256:1", "quay.io/me/x@sha256:1")
    ours = {**IMAGE, "RepoDigests": names, "Config": {"Labels": {"repro.spec": "0"}}}
    assert imagefacts.of(ours, podman=True).digests == ("quay.io/me/x@sha256:1",)


def test_the_lost_end_of_a_long_line_is_put_back() -> None:
    frames = [b"T1 a\n", b"T2 " + b"x" * 9, b"T2 xx", b"T3 b\n", b"T4 " + b"y" * 9, b"T4 ", b"T5 \n", b"T6 last"]
    shown = b"".join(text for group in answers.whole_lines([frames[:2], frames[2:6], frames[6:]]) for text in group)
    assert shown == b"a\n" + b"x" * 11 + b"\nb\n" + b"y" * 9 + b"\n\nlast"


@pytest.mark.parametrize(
    ("version", "splits"), [("20.10.24+dfsg1", True), ("28.5.2", False), ("29.0", False), ("", False)]
)
def test_engines_that_lose_the_end_of_long_lines_are_known(version: str, splits: bool) -> None:
    assert answers.splits_lines({"Version": version}) is splits
    assert not answers.splits_lines({"Version": version, "Components": [{"Name": "Podman Engine"}]})


@pytest.mark.parametrize("size", [1, 3, 8, 9, 50, 1000])
def test_frames_are_found_wherever_the_blocks_end(size: int) -> None:
    wanted = [b"", b"one\n", b"x" * 300, b"last"]
    stream = b"".join(b"\x01\0\0\0" + len(frame).to_bytes(4, "big") + frame for frame in wanted)
    blocks = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert [frame for group in answers.frames(blocks) for frame in group] == wanted
