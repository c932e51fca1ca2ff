"""ImageSpec -> Resolved: what `repro lock` writes down. Images become digests, requirements become files with hashes.

Python packages are resolved by `uv`, for the Python of the base and the platform of the image, in the state that the
index had at one moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from repro import lockfile
from repro.download import Say
from repro.engines import probe, registry, repodigest
from repro.engines.engine import Engine
from repro.errors import BadInputError, EnvironmentUnfitError
from repro.experiment import Value
from repro.lockfile import Resolved
from repro.recipe import base as bases
from repro.recipe import inputs, pylock
from repro.recipe.pylock import Package, Target
from repro.recipe.spec import ImageSpec

PROBE = (
    "import json,platform,sys;"
    "print(json.dumps([platform.python_version(),' '.join(platform.libc_ver()),sys.implementation.name]))"
)
UNREACHABLE = re.compile(
    r"error sending request|dns error|Connection refused|timed out|client error|Failed to fetch|"
    r"TLS (handshake|error)|invalid peer certificate",
    re.IGNORECASE,
)
USER = re.compile(r"://[^/\s\"]+@")
EARLIER = "`--as-of` may be before a version was published, or this index does not tell when its files were"
PIP_TO_UV = {"PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL": "UV_INDEX", "PIP_CERT": "SSL_CERT_FILE"}


class Wish(Value, frozen=True, kw_only=True):
    """What is asked of a resolution beside the spec."""

    as_of: datetime  # when it is
    earlier: bool = False  # as_of is the user's: nothing that was published later is taken
    upgrade: bool = False  # images and packages: what is newest then
    upgrade_packages: tuple[str, ...] = ()  # only these
    python: str | None = None  # in place of the base's own


class Answer(Value, frozen=True, kw_only=True):
    """A resolution, with the text of its pylock.toml."""

    resolved: Resolved
    pylock: bytes | None
    packages: tuple[Package, ...]


def resolve(spec: ImageSpec, engine: Engine, root: Path, before: Resolved | None, wish: Wish, *, say: Say) -> Answer:
    """Resolve everything that the names in a spec leave open; what `before` has is kept unless the wish says otherwise.

    Raises:
        BadInputError: the requirements contradict each other, or hold what no hash can pin.
        EnvironmentUnfitError: an image or the package index cannot be reached.
    """
    images = {name: _image(name, spec, engine, before, wish, say) for name in lockfile.floating_references(spec)}
    requirements = lockfile.requirement_files(spec)
    resolved = Resolved(
        as_of=wish.as_of.strftime("%Y-%m-%dT%H:%M:%SZ"),
        platform=spec.platform,
        images=images,
        requirements=requirements,
    )
    if not requirements or spec.requirements is None:
        return Answer(resolved=resolved, pylock=None, packages=())
    asked = wish.python or (before.python_asked if before is not None else None)
    target = _target(spec, engine, images, asked, say)
    name = f"pylock.{re.sub(r'[^A-Za-z0-9_-]', '_', spec.variant)}.toml"
    content = _compiled(spec, root / name, target, _known(root / name, before), wish, say)
    packages = pylock.packages(content.decode(), target, name)
    resolved = msgspec.structs.replace(
        resolved,
        python=target.python,
        libc=target.libc,
        pylock=name,
        pylock_sha256=hashlib.sha256(content).hexdigest(),
        python_asked=asked,
    )
    return Answer(resolved=resolved, pylock=content, packages=packages)


def _image(name: str, spec: ImageSpec, engine: Engine, before: Resolved | None, wish: Wish, say: Say) -> str:
    """The repo digest of an image where a registry has it, else its id."""
    if "$" in name:
        raise BadInputError(
            f"{spec.dockerfile} takes something from {name}, and what that is cannot be known before the build",
            hints=["give the variable a value, in the Dockerfile or in `image.build_args`"],
        )
    kept = before.images.get(name) if before is not None and not wish.upgrade else None
    if kept is not None and ("@" in kept or engine.image(kept) is not None):  # an id may be another machine's
        return kept
    if name == spec.base_reference and spec.bootstrap is not None:
        bases.ensure(spec.bootstrap, engine, say=say)
    here = engine.image(name)
    if here is not None:
        bases.confirm(name, here, engine)
        if not wish.upgrade or bases.repo_digest(name, here) is None:
            return bases.identity(name, here)
    say(f"asking the registry for {name}")
    return f"{repodigest.repository(name)}@{registry.look(engine, name, hints=[bases.OTHER_VARIANT])}"


def _target(spec: ImageSpec, engine: Engine, images: dict[str, str], asked: str | None, say: Say) -> Target:
    base = images.get(spec.base_reference, spec.base_reference)
    held = engine.image(base) or registry.pull(engine, base, say, hints=[bases.OTHER_VARIANT])
    python, libc = _python(engine, held.id)
    python = asked or python
    if python is None or not re.fullmatch(r"3\.\d+(\.\d+)?", python):
        raise BadInputError(
            f"which Python installs the requirements? {spec.base} has no CPython that could be asked",
            hints=["say it: `repro lock --python 3.12`"],
        )
    if python.count(".") == 1:
        python += ".0"
    return Target(python=python, platform=spec.platform, libc=libc or "glibc 2.17")


def _python(engine: Engine, image: str) -> tuple[str | None, str | None]:
    """Version of an image's Python and its C library, None for what is not there."""
    answer = probe.said(engine, image, ("python3", "-c", PROBE))
    try:
        version, libc, implementation = json.loads((answer or (0, b""))[1].decode().splitlines()[-1])
    except (IndexError, ValueError):
        return None, None
    # Python knows the version of glibc alone; where it says nothing, it is musl
    return (version if implementation == "cpython" else None), libc if libc.startswith("glibc") else "musl 1.2"


def _compiled(spec: ImageSpec, path: Path, target: Target, known: bytes | None, wish: Wish, say: Say) -> bytes:
    """The requirements as the pylock.toml of `path`; versions in the `known` one are kept where they still fit."""
    import uv

    say(f"resolving {spec.requirements} for Python {target.python}")
    # beside the final one, since files of the project are named relative to it
    temporary = path.with_name(f"pylock.tmp-{secrets.token_hex(6)}.toml")
    command = [uv.find_uv_bin(), "pip", "compile", str(spec.requirements), "--format=pylock.toml", "--no-header", "-q"]
    # our own interpreter is only there for uv to have one: markers and wheels are those of the version and the platform
    command += [f"--output-file={temporary}", f"--python={sys.executable}", f"--python-version={target.python}"]
    command += [f"--python-platform={pylock.uv_platform(target)}"]
    command += [f"--exclude-newer={wish.as_of.isoformat()}"] if wish.earlier else []  # few indexes but PyPI tell times
    command += ["--upgrade"] if wish.upgrade else []
    command += [f"--upgrade-package={package}" for package in wish.upgrade_packages]
    try:
        if known is not None:
            temporary.write_bytes(known)
        done = subprocess.run(command, cwd=path.parent, env=_environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise _refused(spec, done.stderr)
        return _without_users(spec, temporary.read_bytes())
    except OSError as error:
        raise EnvironmentUnfitError(
            f"{temporary} cannot be written",
            evidence=[str(error)],
            hints=["free some space, or make the project's folder writable"],
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _without_users(spec: ImageSpec, content: bytes) -> bytes:
    if USER.search(content.decode(errors="replace")):
        raise BadInputError(
            f"the lock of {spec.requirements} would hold a password: a requirement names its file with one",
            hints=["keep it in ~/.netrc, or give an index in UV_INDEX"],
        )
    return content


def _known(path: Path, before: Resolved | None) -> bytes | None:
    """The lock that is there, if it is the one that was written: uv keeps its versions."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    written = before is not None and hashlib.sha256(content).hexdigest() == before.pylock_sha256
    return content if written else None


def _environment() -> dict[str, str]:
    """Who has set up pip for an index, a proxy and certificates means every installer."""
    ours = {theirs: os.environ[name] for name, theirs in PIP_TO_UV.items() if os.environ.get(name)}
    return {"UV_SYSTEM_CERTS": "1", **ours, **os.environ, "NO_COLOR": "1"}


def _refused(spec: ImageSpec, said: str) -> BadInputError | EnvironmentUnfitError:
    lines = [inputs.without_users(line.strip()) for line in said.splitlines() if line.strip()]
    if UNREACHABLE.search(said):
        return EnvironmentUnfitError(
            f"{spec.requirements} cannot be resolved: the package index does not answer",
            evidence=lines,
            hints=["`repro doctor` looks what is reachable", "UV_DEFAULT_INDEX or PIP_INDEX_URL name another index"],
        )
    return BadInputError(
        f"{spec.requirements} cannot be resolved",
        evidence=lines,
        hints=["loosen what contradicts", *([EARLIER] if "exclude-newer" in said else [])],
    )


def changes(before: Sequence[Package], after: Sequence[Package]) -> list[str]:
    """What a new resolution changes, one line a package."""
    old, new = ({each.name: each.version or each.file for each in packages} for packages in (before, after))
    return [
        f"{name} {old.get(name, '(new)')} -> {new.get(name, '(gone)')}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
