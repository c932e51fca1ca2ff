"""The base of an image: one from a registry, or one that is made here from Debian's packages, without a registry.

The bootstrap uses mmdebstrap with a fixed time; the archive's layer and configuration are pure functions of what it
makes, so the same packages give the same image id on every machine.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from repro.engine import Engine, ImageFacts
from repro.errors import EnvironmentUnfitError
from repro.experiment import BaseRecipe
from repro.project import cache_folder

NAME = "repro-base"
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
Say = Callable[[str], None]


def resolve(
    asked: str, recipe: BaseRecipe | None, engine: Engine, *, say: Say, pull: bool = False
) -> tuple[str, ImageFacts]:
    """What to build FROM, as immutable as the builders allow, and what the engine holds under it.

    Raises:
        EnvironmentUnfitError: it is not on the engine and can neither be pulled nor made.
    """
    if recipe is not None:
        tag = ensure(recipe, engine, say=say)
        found = engine.image(tag)
        assert found is not None  # noqa: S101 - `ensure` has just seen it
        return tag, found
    found = None if pull else engine.image(asked)
    found = found or engine.pull(asked, say)
    # builders take a repo digest, or a name; an image that no registry has seen has the name alone
    return (found.digests[0] if found.digests else asked), found


def identity(base: ImageFacts) -> str:
    """The repo digest of a base where it has one, else its id."""
    return base.digests[0] if base.digests else base.id


def tag_of(recipe: BaseRecipe) -> str:
    """The tag of a bootstrapped base: its suite and a hash of its recipe."""
    digest = hashlib.sha256(msgspec.json.encode(recipe, order="deterministic")).hexdigest()
    return f"{NAME}:{recipe.suite}-{digest[:12]}"


def ensure(recipe: BaseRecipe, engine: Engine, *, say: Say) -> str:
    """The tag of a bootstrapped base that is on the engine; made in half a minute when it is missing.

    Raises:
        EnvironmentUnfitError: this machine cannot bootstrap, or the packages cannot be had.
    """
    tag = tag_of(recipe)
    if engine.image(tag):
        return tag
    import filelock

    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(locks / f"{tag.replace(':', '-')}.lock"):
        if engine.image(tag):
            return tag
        with tempfile.TemporaryDirectory(prefix="repro-base-") as folder:
            root = Path(folder) / "root.tar"
            _bootstrap(recipe, root, say)
            archive = Path(folder) / "image.tar"
            with root.open("rb") as layer, archive.open("wb") as out:
                write_archive(layer, out, tag)
            say(f"loading {tag}")
            with archive.open("rb") as file:
                engine.load(file)
    return tag


def _bootstrap(recipe: BaseRecipe, target: Path, say: Say) -> None:
    _require_tools()
    command = ["mmdebstrap", "--mode=root", "--variant=apt", f"--include={','.join(recipe.packages)}"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    if CA_BUNDLE.is_file():
        # Networks that inspect TLS have their own authority in it, without which nothing can be installed on top
        command.append(f"--customize-hook=copy-in {CA_BUNDLE} {CA_BUNDLE.parent}")
    command += [recipe.suite, str(target), *mirrors(recipe.suite)]
    say(f"bootstrapping Debian {recipe.suite} with {', '.join(recipe.packages)}")
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(recipe.source_date_epoch)}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True
    )
    lines = []
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    for line in process.stdout:
        lines.append(line.rstrip())
        say(line.rstrip())
    if process.wait():
        raise EnvironmentUnfitError(
            f"Debian {recipe.suite} could not be bootstrapped",
            evidence=lines[-15:],
            hints=["do this machine's own apt sources work? `sudo apt-get update`"],
        )


def _require_tools() -> None:
    if shutil.which("mmdebstrap") is None:
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
    """The Debian mirrors of this machine's own apt sources that can serve `suite`; [] lets mmdebstrap choose."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = dict.fromkeys(tuple(line.split()) for line in done.stdout.splitlines() if len(line.split()) == 2)
    # the archive and its updates; a third party's repository has other suites
    return [uri for uri, release in found if release == suite][:1]


def write_archive(layer: IO[bytes], out: IO[bytes], tag: str) -> str:
    """Write what `docker load` takes, with one layer; the image id is a function of the layer's bytes alone."""
    hasher = hashlib.sha256()
    while block := layer.read(1 << 20):
        hasher.update(block)
    size, digest = layer.tell(), hasher.hexdigest()
    layer.seek(0)
    epoch = "1970-01-01T00:00:00Z"
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": epoch,
        "config": {"Env": [f"PATH={PATH}"], "Cmd": ["/bin/bash"]},
        "history": [{"created": epoch, "created_by": f"repro bootstrap sha256:{digest}"}],
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
