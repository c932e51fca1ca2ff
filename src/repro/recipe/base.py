"""The base of an image: one from a registry, or one that is made here from Debian's packages, without a registry.

The bootstrap uses mmdebstrap with a fixed time; the archive's layer and configuration are pure functions of what it
makes, so the same packages give the same image id on every machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from repro import scratch
from repro.engines import registry, repodigest
from repro.engines.engine import Engine
from repro.engines.imagefacts import ImageFacts
from repro.errors import EnvironmentUnfitError
from repro.experiment import BaseRecipe
from repro.manifest import sha256
from repro.project import cache_folder

NAME = "repro-base"
RECIPE_LABEL = "repro.recipe"  # full hash of the recipe
WAY = 2  # of making a base: raised when the same recipe and the same packages give other bytes
CA_LABEL = "repro.ca_bundle"  # sha256 of this machine's own authorities, where it has any: they are an input, too
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
CA_STOCK = Path("/usr/share/ca-certificates")
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OTHER_VARIANT = "`repro doctor --write` looks what is reachable, and notes the image variant that works here"
EPOCH = "1970-01-01T00:00:00Z"
Say = Callable[[str], None]


def resolve(
    asked: str, recipe: BaseRecipe | None, engine: Engine, *, say: Say, pull: bool = False
) -> tuple[str, ImageFacts]:
    """What to build FROM, as immutable as the builders allow, and what the engine holds under it.

    Raises:
        EnvironmentUnfitError: it is not on the engine and can neither be pulled nor made.
    """
    if recipe is not None:
        return tag_of(recipe), _ensured(recipe, engine, say=say, anew=pull)
    found = None if pull else engine.image(asked)
    found = found or registry.pull(engine, asked, say, hints=[OTHER_VARIANT])
    confirm(asked, found, engine)
    # builders take a repo digest, or a name; an image that no registry has seen has the name alone
    return repo_digest(asked, found) or asked, found


def repo_digest(asked: str, base: ImageFacts) -> str | None:
    """The digest that the repository of `asked` has for it: the same image may have been pushed to others, too."""
    known = repodigest.known(base.id, base.digests)
    return next((each for each in _of_repository(asked, base) if each in known or each == asked), None)


def _of_repository(asked: str, base: ImageFacts) -> list[str]:
    wanted = repodigest.short(asked)
    return [digest for digest in base.digests if repodigest.short(digest) == wanted]


def confirm(asked: str, base: ImageFacts, engine: Engine) -> None:
    """Ask the registry for a digest that the engine lists and that may be its own: it counts when the registry has it.

    A build from one that no registry has would go and look for it there, and fail.
    """
    for digest in _of_repository(asked, base):
        if digest != asked and not repodigest.known(base.id, [digest]):
            with contextlib.suppress(EnvironmentUnfitError):
                registry.look(engine, digest)
                repodigest.note(digest)


def identity(asked: str, base: ImageFacts) -> str:
    """The repo digest of a base where it has one, else its id."""
    return repo_digest(asked, base) or base.id


def digest_of(recipe: BaseRecipe) -> str:
    """sha256 of a recipe and of how it is followed."""
    return hashlib.sha256(msgspec.json.encode([WAY, recipe], order="deterministic")).hexdigest()


def tag_of(recipe: BaseRecipe) -> str:
    """The tag of a bootstrapped base: its suite and a hash of its recipe."""
    return f"{NAME}:{recipe.suite}-{digest_of(recipe)[:12]}"


def ensure(recipe: BaseRecipe, engine: Engine, *, say: Say) -> str:
    """The tag of a bootstrapped base that is on the engine; made in half a minute when it is missing.

    Raises:
        EnvironmentUnfitError: this machine cannot bootstrap, or the packages cannot be had.
    """
    _ensured(recipe, engine, say=say, anew=False)
    return tag_of(recipe)


def _ensured(recipe: BaseRecipe, engine: Engine, *, say: Say, anew: bool) -> ImageFacts:
    if not anew and (found := _present(recipe, engine)):
        return found
    import filelock

    try:
        locks = cache_folder() / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(locks / f"base-{digest_of(recipe)[:32]}.lock"):
            if anew or not _present(recipe, engine):
                _make(recipe, engine, say)
    except OSError as error:
        raise EnvironmentUnfitError(f"{tag_of(recipe)} cannot be made", evidence=[str(error)]) from error
    made = _present(recipe, engine)
    if made is None:
        raise EnvironmentUnfitError(f"the engine does not hold {tag_of(recipe)} after loading it")
    return made


def _present(recipe: BaseRecipe, engine: Engine) -> ImageFacts | None:
    """A tag can be moved by hand; the label inside cannot."""
    found = engine.image(tag_of(recipe))
    return found if found and found.labels.get(RECIPE_LABEL) == digest_of(recipe) else None


def _make(recipe: BaseRecipe, engine: Engine, say: Say) -> None:
    _require_tools()
    tag = tag_of(recipe)
    labels = {RECIPE_LABEL: digest_of(recipe)}
    with scratch.folder("repro-base-") as folder:
        if authorities := own_authorities() if "ca-certificates" in recipe.packages else "":
            labels[CA_LABEL] = hashlib.sha256(authorities.encode()).hexdigest()
            (folder / "machine.crt").write_text(authorities)
        root = folder / "root.tar"
        _bootstrap(recipe, root, folder / "machine.crt" if authorities else None, say)
        with root.open("rb") as layer, (folder / "image.tar").open("w+b") as archive:
            write_archive(layer, archive, tag, labels, _architecture())
            archive.seek(0)
            say(f"loading {tag}")
            engine.load(archive)


def own_authorities() -> str:
    """The certificates that this machine trusts beside its distribution's, as PEM in a fixed order; "" for none.

    Networks that inspect TLS have one of their own, without which nothing could be installed on top of the base.
    """
    try:
        trusted = set(CERTIFICATE.findall(CA_BUNDLE.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return ""
    stock = {
        found
        for file in CA_STOCK.rglob("*.crt")
        for found in CERTIFICATE.findall(file.read_text(encoding="utf-8", errors="replace"))
    }
    return "".join(f"{certificate}\n" for certificate in sorted(trusted - stock)) if stock else ""


def _bootstrap(recipe: BaseRecipe, target: Path, authorities: Path | None, say: Say) -> None:
    command = ["mmdebstrap", "--mode=root", "--variant=apt", f"--include={','.join(recipe.packages)}"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    if authorities:
        command.append(f"--customize-hook=copy-in {authorities} /usr/local/share/ca-certificates")
        command.append('--customize-hook=chroot "$1" update-ca-certificates')
    command.append(
        '--customize-hook=rm -f "$1/etc/hostname" "$1/etc/resolv.conf"'
    )  # this machine's; engines mount theirs
    command += [recipe.suite, str(target), *mirrors(recipe.suite)]
    say(f"bootstrapping Debian {recipe.suite} with {', '.join(recipe.packages)}")
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(recipe.source_date_epoch)}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True
    )
    last: deque[str] = deque(maxlen=15)
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    try:
        for line in process.stdout:
            last.append(line.rstrip())
            say(line.rstrip())
    finally:
        if process.poll() is None and sys.exc_info()[0]:  # interrupted: it removes its half-made root by itself
            process.terminate()
        process.wait()
        process.stdout.close()
    if process.returncode:
        raise EnvironmentUnfitError(
            f"Debian {recipe.suite} could not be bootstrapped",
            evidence=list(last),
            hints=["do this machine's own apt sources work? `sudo apt-get update`"],
        )


def is_base(image: ImageFacts) -> bool:
    """Whether an image was made here: what is built on one has its labels, too, but neither its time nor one layer."""
    made = image.created.startswith(EPOCH[:19]) and len(image.layers) == 1
    return made and RECIPE_LABEL in image.labels


def can_make() -> bool:
    """Whether this user can bootstrap a base on this machine."""
    return sys.platform.startswith("linux") and shutil.which("mmdebstrap") is not None and os.geteuid() == 0


def _require_tools() -> None:
    if not sys.platform.startswith("linux") or shutil.which("mmdebstrap") is None:
        raise EnvironmentUnfitError(
            "the base of image=debian is made with mmdebstrap, which is not installed",
            hints=["`sudo apt-get install mmdebstrap` on Debian and Ubuntu", "elsewhere: image=tensorflow"],
        )
    if os.geteuid() != 0:
        raise EnvironmentUnfitError(
            "the base of image=debian can only be made by root",
            hints=["once, as root: `sudo repro rebuild image=debian`; afterwards everybody can use it"],
        )


def mirrors(suite: str) -> list[str]:
    """The Debian mirror of this machine's own apt sources, best one that lists `suite`; [] lets mmdebstrap choose."""
    if shutil.which("apt-get") is None:
        return []
    form = "$(REPO_URI)|$(RELEASE)|$(CODENAME)|$(ORIGIN)|$(LABEL)"
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    archives = []  # Debian's own, without updates and security, which have other suites
    for line in done.stdout.splitlines():
        uri, release, codename, origin, label = (line.split("|") + [""] * 5)[:5]
        if origin == label == "Debian" and uri.startswith("http"):
            archives.append((suite not in (release, codename), uri))
    return [uri for _, uri in sorted(archives, key=lambda archive: archive[0])][:1]


def _architecture() -> str:
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def write_archive(layer: IO[bytes], out: IO[bytes], tag: str, labels: dict[str, str], architecture: str) -> str:
    """Write what `docker load` takes, with one layer; the image id is a function of the arguments alone."""
    digest = sha256(layer)
    size = layer.tell()
    layer.seek(0)
    config = {
        "architecture": architecture,
        "os": "linux",
        "created": EPOCH,
        "config": {"Env": [f"PATH={PATH}"], "Cmd": ["/bin/bash"], "Labels": labels},
        "history": [{"created": EPOCH, "created_by": f"repro bootstrap sha256:{digest}"}],
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    encoded = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    image = hashlib.sha256(encoded).hexdigest()
    manifest = [{"Config": f"{image}.json", "RepoTags": [tag], "Layers": [f"{digest}/layer.tar"]}]
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        _add(archive, f"{digest}/layer.tar", layer, size)
        _add(archive, f"{image}.json", io.BytesIO(encoded), len(encoded))
        listed = json.dumps(manifest).encode()
        _add(archive, "manifest.json", io.BytesIO(listed), len(listed))
    return f"sha256:{image}"


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = size
    archive.addfile(entry, content)
