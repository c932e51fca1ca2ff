"""ImageSpec -> what a builder is sent: its files with repro.lock's pins in them, and what only the build may see."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec.structs import replace

from repro.build import context, dockerfile
from repro.build.context import ContextFile
from repro.download import SILENT_SECONDS, Say, Wanted, cache_errors, obtain, progress_bars
from repro.errors import BadInputError, EnvironmentUnfitError
from repro.experiment import BuildConfig, SecretSource, Value
from repro.recipe import pylock
from repro.recipe.pylock import Package
from repro.recipe.spec import ImageSpec
from repro.secrets import secretsources
from repro.secrets.masking import Masker

AT_ONCE = 6  # downloads
LARGE = 1_000_000  # bytes of a wheel: from here on, a stage of its own keeps it while smaller ones change
INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
AUTHORITIES = "the host's own, on Debian and Ubuntu: build.ca_bundle=/etc/ssl/certs/ca-certificates.crt"
USER = re.compile(r"://([^/\s@]+)@([^/\s]+)")
README = b"What the host gives to this build; no part of the image. See docs/images.md of repro.\n"
PLACE = "/tmp/from-host"  # noqa: S108 - where a Dockerfile puts the folder, for pip.conf to be right


class FromHost(Value, frozen=True, kw_only=True):
    """What a build may use and no image keeps, none of it part of the hash."""

    files: dict[str, Path | bytes]  # by their path in the folder `from-host` of the context
    secrets: dict[str, SecretSource]  # for `RUN --mount=type=secret,id=NAME`


def nothing() -> FromHost:
    """For builds that need nothing of the host: the folder is there all the same, so that a COPY of it works."""
    files: dict[str, Path | bytes] = dict.fromkeys(("README", "large/README", "wheels/README"), README)
    return FromHost(files={**files, "ca-bundle.pem": b"", "pip.conf": b"[global]\n"}, secrets={})


def files(spec: ImageSpec, substitutes: Mapping[str, str]) -> tuple[ContextFile, ...]:
    """The files of the context: the Dockerfile with its pinned images, the locked packages as the requirements.

    Args:
        spec: with what the lock pins.
        substitutes: image reference -> what to write in its place, beside the pins of the spec.
    """
    pins = {**spec.pins, **substitutes}
    found = [each for each in spec.references() if "BASE_IMAGE" not in each.written]  # which comes as an argument
    new = {spec.dockerfile: dockerfile.pinned(spec.dockerfile_text, found, pins)}
    if spec.packages is not None and spec.requirements is not None:
        new[spec.requirements] = pylock.requirements(
            locked(spec), _written(spec), spec.packages.name, wheels_given=spec.uses_host
        )
    return tuple(replace(file, content=new[file.path].encode()) if file.path in new else file for file in spec.files)


def locked(spec: ImageSpec) -> tuple[Package, ...]:
    """The packages that the lock pins; () without one.

    Raises:
        BadInputError: the lock's pylock.toml cannot be used.
    """
    if spec.packages is None:
        return ()
    return pylock.packages(spec.packages.content.decode(), spec.packages.target, spec.packages.name)


def _written(spec: ImageSpec) -> str:
    return "\n".join(file.content.decode() for file in spec.files if file.text and file.path != spec.dockerfile)


def gather(spec: ImageSpec, build: BuildConfig, root: Path, cache: Path, say: Say, *, progress: bool) -> FromHost:
    """Fetch and read what the host gives to the build of a spec.

    The wheels of the lock come from the cache, or are fetched by hash into it first.

    Raises:
        BadInputError: a secret or the CA bundle is not there, or a build without a network cannot be done like this.
        EnvironmentUnfitError: a wheel cannot be had.
    """
    secrets = {name: _secret(name, source, root) for name, source in build.secrets.items()}
    given = dict(nothing().files)
    settings = []
    if build.ca_bundle is not None:
        given["ca-bundle.pem"] = _ca_bundle(build.ca_bundle, root)
        settings.append(f"cert = {PLACE}/ca-bundle.pem")
    everything = locked(spec)
    _check_without_network(spec, everything)
    if spec.uses_host:
        packages = tuple(package for package in everything if package.url is not None)
        for package, held in zip(packages, _wheels(packages, _users(spec), cache, say, progress=progress), strict=True):
            folder = "large" if package.wheel and (package.size or 0) >= LARGE else "wheels"
            given[f"{folder}/{package.file}"] = held
        if packages:
            settings.append(f"find-links =\n    {PLACE}/wheels\n    {PLACE}/large")
            if all(package.wheel for package in everything):  # what is built from source needs its tools from an index
                settings.append("no-index = true")
        if spec.packages is not None:
            given["pylock.toml"] = spec.packages.content
    given["pip.conf"] = ("\n".join(["[global]", *settings]) + "\n").encode()
    return FromHost(files=given, secrets=secrets)


def _check_without_network(spec: ImageSpec, packages: tuple[Package, ...]) -> None:
    if spec.network != "none":
        return
    if spec.packages is None and context.requirement_lines(_written(spec)):
        raise BadInputError(
            "`build.network: none`: the packages have to come from a lock, and there is none that counts",
            hints=["`repro lock` makes one, with a network; after that, builds need none"],
        )
    if sources := [package.file for package in packages if not package.wheel]:
        raise BadInputError(
            "`build.network: none`: not every package has a wheel, and building one needs a network",
            evidence=sources,
            hints=["make wheels of them, put them into the project, and name these files in the requirements"],
        )


def _wheels(
    packages: tuple[Package, ...], users: Mapping[str, str], cache: Path, say: Say, *, progress: bool
) -> list[Path]:
    """The files of packages, from the cache that all projects share; several are fetched at once."""
    from concurrent.futures import ThreadPoolExecutor

    wanted = [Wanted(path=each.file, sha256=each.sha256, held=cache / "wheels" / each.sha256) for each in packages]
    stopped = threading.Event()
    with cache_errors(cache), progress_bars(say, drawn=progress, stopped=stopped) as (line, bar):

        def fetched(number: int) -> list[str]:
            if stopped.is_set():
                return []
            place = (_with_user(str(packages[number].url), users),)
            return obtain(wanted[number], place, line, bar, SILENT_SECONDS)

        missing = [number for number, each in enumerate(wanted) if not each.here()]
        if missing:
            say(f"fetching {len(missing)} of {len(wanted)} packages")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                refused = next(
                    ((n, why) for n, why in zip(missing, pool.map(fetched, missing), strict=True) if why), None
                )
            finally:
                stopped.set()  # else the pool would wait for what nobody wants any more
    if refused is not None:
        raise _unobtainable(packages[refused[0]], refused[1])
    return [each.held for each in wanted]


def _users(spec: ImageSpec) -> dict[str, str]:
    """host -> user:password, of the indexes that the environment and the requirements name: a lock has neither."""
    texts = [os.environ.get(name, "") for name in INDEXES]
    texts += [line for line in _written(spec).splitlines() if "index-url" in line or line.strip().startswith("-i")]
    return {host: user for text in texts for user, host in USER.findall(text)}


def _with_user(url: str, users: Mapping[str, str]) -> str:
    scheme, _, rest = url.partition("://")
    user = users.get(rest.partition("/")[0])
    return f"{scheme}://{user}@{rest}" if user else url


def _unobtainable(package: Package, refusals: list[str]) -> EnvironmentUnfitError:
    return EnvironmentUnfitError(
        f"package {package.name} {package.version} cannot be had",
        evidence=[*refusals, f"wanted: {package.file}, sha256 {package.sha256}"],
        hints=[
            "an index that wants a password: UV_DEFAULT_INDEX or UV_INDEX, as for `repro lock`, or ~/.netrc",
            "is the network up? `repro doctor` looks",
            "if it is gone for good: `repro lock --upgrade`",
        ],
    )


def _ca_bundle(name: str, root: Path) -> bytes:
    path = root / Path(name).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInputError(
            f"build.ca_bundle: {path} cannot be read", evidence=[str(error)], hints=[AUTHORITIES]
        ) from error
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise BadInputError(
            f"build.ca_bundle: {path} holds no certificate in PEM form",
            evidence=[f"{len(content)} bytes without a BEGIN CERTIFICATE"],
            hints=[AUTHORITIES],
        )
    return content


def _secret(name: str, source: SecretSource, root: Path) -> SecretSource:
    secretsources.check(f"build.secrets.{name}", source, root)
    return source if source.file is None else SecretSource(file=str(secretsources.place(source.file, root)))


def mask(secrets: Mapping[str, SecretSource]) -> Callable[[str], str]:
    """Takes the values of secrets out of a line, should a step print one."""
    masker = Masker(
        os.environb.get(os.fsencode(source.env), b"") if source.env else Path(str(source.file)).read_bytes()
        for source in secrets.values()
    )
    return lambda line: masker.whole(line.encode(errors="surrogatepass")).decode(errors="replace")
