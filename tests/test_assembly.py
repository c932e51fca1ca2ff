"""What a builder is sent: pins in their places, wheels from the cache, secrets that nobody prints."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from msgspec.structs import replace

from repro.errors import BadInputError, EnvironmentUnfitError
from repro.experiment import BuildConfig, ImageConfig, SecretSource
from repro.recipe import assembly
from repro.recipe.assembly import FromHost
from repro.recipe.pylock import Target
from repro.recipe.spec import ImageSpec, LockedPackages

TARGET = Target(python="3.11.2", platform="linux/amd64", libc="glibc 2.36")
DOCKERFILE = """\
# syntax=docker/dockerfile:1
ARG BASE_IMAGE
FROM ${BASE_IMAGE} AS made
COPY --from=uv:1 /uv /bin/
COPY from-host /tmp/from-host
COPY docker/requirements.txt /tmp/
FROM ${BASE_IMAGE}
"""
FOUND = b"[global]\nfind-links =\n    /tmp/from-host/wheels\n    /tmp/from-host/large\n"
CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


class Files(SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """The address of a folder, `tmp_path / "index"`, over HTTP on loopback."""
    (tmp_path / "index").mkdir()
    handler = partial(Files, directory=str(tmp_path / "index"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "docker" / "requirements.txt").write_text("a\n")
    return tmp_path


def spec(root: Path, network: str | None = None) -> ImageSpec:
    return ImageSpec.read(ImageConfig(variant="v", base="tf:1"), root, BuildConfig(network=network))  # type: ignore[arg-type]


def locked(found: ImageSpec, index: str, *files: tuple[str, bytes], size: int | None = None) -> ImageSpec:
    """The spec with a lock of these files, each a package of its own."""
    lines = ['lock-version = "1.0"', 'created-by = "test"']
    for name, content in files:
        package = name.split("-")[0]
        kind = "wheels = [%s]" if name.endswith(".whl") else "sdist = %s"
        sha256, length = hashlib.sha256(content).hexdigest(), size or len(content)
        file = f'{{ url = "{index}/{name}", size = {length}, hashes = {{ sha256 = "{sha256}" }} }}'
        lines += ["[[packages]]", f'name = "{package}"', 'version = "1"', kind % file]
    content = "\n".join(lines).encode()
    return replace(found, packages=LockedPackages(name="pylock.v.toml", content=content, target=TARGET))


def gathered(found: ImageSpec, root: Path, build: BuildConfig | None = None) -> FromHost:
    return assembly.gather(found, build or BuildConfig(), root, root / "cache", lambda _line: None, progress=False)


def text(files: tuple[object, ...], path: str) -> str:
    return next(file.content.decode() for file in files if file.path == path)  # type: ignore[attr-defined]


# the files -------------------------------------------------------------------------------------------------------


def test_pins_are_written_into_the_dockerfile_and_the_base_stays_an_argument(root: Path) -> None:
    found = replace(
        spec(root), pins={"tf:1": "tf@sha256:1", "uv:1": "uv@sha256:2", "docker/dockerfile:1": "d@sha256:3"}
    )
    sent = text(assembly.files(found, {}), "docker/Dockerfile")
    assert sent == DOCKERFILE.replace("docker/dockerfile:1", "d@sha256:3").replace("uv:1", "uv@sha256:2")
    assert text(assembly.files(found, {"uv:1": "repro-pin:x"}), "docker/Dockerfile").splitlines()[3] == (
        "COPY --from=repro-pin:x /uv /bin/"
    )
    assert text(assembly.files(spec(root), {}), "docker/Dockerfile") == DOCKERFILE


def test_a_base_that_the_dockerfile_spells_out_is_pinned_there(root: Path) -> None:
    (root / "docker" / "Dockerfile").write_text("FROM tf:1\nCOPY --from=tf:1 /a /b\n")
    found = replace(spec(root), pins={"tf:1": "tf@sha256:1"})
    assert text(assembly.files(found, {}), "docker/Dockerfile") == "FROM tf@sha256:1\nCOPY --from=tf@sha256:1 /a /b\n"


def test_the_locked_packages_take_the_place_of_the_requirements(root: Path) -> None:
    found = locked(spec(root), "https://example.com", ("a-1-py3-none-any.whl", b"a"), ("b-1-py3-none-any.whl", b"b"))
    assert text(assembly.files(found, {}), "docker/requirements.txt").splitlines()[1:] == [
        f"a==1 --hash=sha256:{hashlib.sha256(b'a').hexdigest()}",
        f"b==1 --hash=sha256:{hashlib.sha256(b'b').hexdigest()}",
    ]
    assert text(assembly.files(spec(root), {}), "docker/requirements.txt") == "a\n"


# what the host gives ---------------------------------------------------------------------------------------------


def test_wheels_are_fetched_once_and_pip_is_told_to_ask_nobody_else(root: Path, tmp_path: Path, index: str) -> None:
    (tmp_path / "index" / "a-1-py3-none-any.whl").write_bytes(b"wheel a")
    found = locked(spec(root), index, ("a-1-py3-none-any.whl", b"wheel a"))
    given = gathered(found, root).files
    held = given["wheels/a-1-py3-none-any.whl"]
    assert isinstance(held, Path)
    assert held.read_bytes() == b"wheel a"
    assert given["pip.conf"] == FOUND + b"no-index = true\n"
    assert given["pylock.toml"] == found.packages.content  # type: ignore[union-attr]
    (tmp_path / "index" / "a-1-py3-none-any.whl").unlink()
    assert gathered(found, root).files["wheels/a-1-py3-none-any.whl"] == held


def test_large_wheels_lie_apart_so_that_a_builder_can_keep_them(
    root: Path, tmp_path: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "LARGE", 7)
    files = [("a-1-py3-none-any.whl", b"wheel a"), ("b-1-py3-none-any.whl", b"b")]
    for name, content in files:
        (tmp_path / "index" / name).write_bytes(content)
    given = gathered(locked(spec(root), index, *files), root).files
    assert [name for name in given if name.endswith(".whl")] == [
        "large/a-1-py3-none-any.whl",
        "wheels/b-1-py3-none-any.whl",
    ]


def test_a_wheel_with_other_bytes_is_refused_and_not_kept(root: Path, tmp_path: Path, index: str) -> None:
    (tmp_path / "index" / "a-1-py3-none-any.whl").write_bytes(b"evil")
    found = locked(spec(root), index, ("a-1-py3-none-any.whl", b"wheel a"))
    with pytest.raises(EnvironmentUnfitError, match="package a 1 cannot be had") as caught:
        gathered(found, root)
    assert "wrong bytes" in str(caught.value)
    assert [path for path in (root / "cache" / "wheels").iterdir() if not path.name.endswith(".lock")] == []


def test_a_cut_off_wheel_in_the_cache_is_fetched_again(root: Path, tmp_path: Path, index: str) -> None:
    (tmp_path / "index" / "a-1-py3-none-any.whl").write_bytes(b"wheel a")
    found = locked(spec(root), index, ("a-1-py3-none-any.whl", b"wheel a"))
    held = root / "cache" / "wheels" / hashlib.sha256(b"wheel a").hexdigest()
    held.parent.mkdir(parents=True)
    held.write_bytes(b"whe")
    assert gathered(found, root).files["wheels/a-1-py3-none-any.whl"] == held
    assert held.read_bytes() == b"wheel a"


def test_an_index_that_is_down_is_said_with_the_package(root: Path) -> None:
    found = locked(spec(root), "http://127.0.0.1:9", ("a-1-py3-none-any.whl", b"wheel a"))
    with pytest.raises(EnvironmentUnfitError, match="package a 1 cannot be had") as caught:
        gathered(found, root)
    assert "Connection refused" in str(caught.value)


def test_a_package_without_a_wheel_needs_an_index_for_its_tools(root: Path, tmp_path: Path, index: str) -> None:
    (tmp_path / "index" / "a-1.tar.gz").write_bytes(b"source")
    assert gathered(locked(spec(root), index, ("a-1.tar.gz", b"source")), root).files["pip.conf"] == FOUND
    with pytest.raises(BadInputError, match="not every package has a wheel") as caught:
        gathered(locked(spec(root, network="none"), index, ("a-1.tar.gz", b"source")), root)
    assert "a-1.tar.gz" in caught.value.evidence


def test_without_a_network_packages_need_a_lock(root: Path) -> None:
    with pytest.raises(BadInputError, match="have to come from a lock") as caught:
        gathered(spec(root, network="none"), root)
    assert "repro lock" in str(caught.value)
    (root / "docker" / "requirements.txt").write_text("# none\n")
    assert gathered(spec(root, network="none"), root) == assembly.nothing()


def test_a_dockerfile_that_does_not_ask_for_wheels_costs_no_download(root: Path) -> None:
    (root / "docker" / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n")
    found = locked(spec(root), "http://127.0.0.1:9", ("a-1-py3-none-any.whl", b"wheel a"))
    assert gathered(found, root) == assembly.nothing()


def test_the_authorities_of_this_network_go_to_the_build(root: Path) -> None:
    (root / "ca.pem").write_bytes(CERTIFICATE)
    given = gathered(spec(root), root, BuildConfig(ca_bundle="ca.pem")).files
    assert given["ca-bundle.pem"] == CERTIFICATE
    assert given["pip.conf"] == b"[global]\ncert = /tmp/from-host/ca-bundle.pem\n"


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), (b"x", "no certificate in PEM form")])
def test_a_bundle_that_is_none_is_refused(root: Path, content: bytes | None, said: str) -> None:
    if content:
        (root / "ca.pem").write_bytes(content)
    with pytest.raises(BadInputError, match=said):
        gathered(spec(root), root, BuildConfig(ca_bundle="ca.pem"))


# secrets ---------------------------------------------------------------------------------------------------------


def test_secrets_come_from_the_environment_or_a_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "s3cret")
    (root / "netrc").write_text("password hunter22\n")
    build = BuildConfig(secrets={"token": SecretSource(env="TOKEN"), "netrc": SecretSource(file="netrc")})
    given = gathered(spec(root), root, build).secrets
    assert given == {"token": SecretSource(env="TOKEN"), "netrc": SecretSource(file=str(root / "netrc"))}
    masked = assembly.mask(given)
    assert masked("the token is s3cret!") == "the token is ******!"
    assert masked("password hunter22") == "*****************"
    assert masked("nothing here") == "nothing here"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (SecretSource(env="REPRO_TEST_UNSET"), "REPRO_TEST_UNSET is not set"),
        (SecretSource(file="nothing"), "cannot be read"),
        (SecretSource(), "give env or file"),
        (SecretSource(env="A", file="b"), "give env or file"),
    ],
)
def test_a_secret_that_is_not_there_is_said_before_the_build(root: Path, source: SecretSource, said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        gathered(spec(root), root, BuildConfig(secrets={"token": source}))


@pytest.mark.parametrize(
    ("secret", "printed"),
    [
        ("machine example.com login bob password hunter2-word", "curl -u bob:hunter2-word x"),
        ("KEY=hunter2-word", "key hunter2-word"),
        ('{"auths": {"x": {"auth": "hunter2-word"}}}', "auth hunter2-word"),
    ],
)
def test_a_part_of_a_secret_file_is_masked_too(root: Path, secret: str, printed: str) -> None:
    (root / "secret").write_text(secret)
    assert "hunter2" not in assembly.mask({"s": SecretSource(file=str(root / "secret"))})(printed)


def test_without_secrets_lines_stay_as_they_are() -> None:
    assert assembly.mask({})("s3cret") == "s3cret"
