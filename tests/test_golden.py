"""The vectors of docs/image-identity.md: files and a configuration in, canonical form and hash out."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from omegaconf import OmegaConf

from repro.build import dockerfile
from repro.errors import BadInputError
from repro.experiment import BuildConfig, ImageConfig
from repro.recipe.pylock import Target
from repro.recipe.spec import ImageSpec, LockedPackages
from tests import golden_reference

CASES = sorted((Path(__file__).parent / "golden").glob("*.yaml"))


def load(path: Path) -> dict[str, Any]:
    case: dict[str, Any] = yaml.safe_load(path.read_text())
    return case


def write(root: Path, files: dict[str, Any]) -> None:
    """The files of a case."""
    for name, entry in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"text": entry} if isinstance(entry, str) else entry
        if "link" in content:
            file.symlink_to(content["link"])
            continue
        file.write_bytes(base64.b64decode(content["base64"]) if "base64" in content else content["text"].encode())
        file.chmod(int(content.get("mode", "644"), 8))


def spec(case: dict[str, Any], root: Path) -> ImageSpec:
    """What this implementation makes of a case."""
    given = resolved(case)
    network = given.pop("network", None)
    build = msgspec.convert({"network": network, **case.get("build", {})}, BuildConfig)
    read = ImageSpec.read(msgspec.convert({"variant": "golden", **given}, ImageConfig), root, build)
    return msgspec.structs.replace(read, pins=case.get("pins", {}), packages=locked(case, read.platform))


def locked(case: dict[str, Any], platform: str) -> LockedPackages | None:
    """The packages that a lock pins in a case."""
    given = case.get("packages")
    if given is None:
        return None
    target = Target(python=given["python"], platform=platform, libc=given["libc"])
    return LockedPackages(name="pylock.golden.toml", content=given["text"].encode(), target=target)


def expected(spec: ImageSpec) -> dict[str, Any]:
    """What a case says of its spec."""
    references = dockerfile.references(spec.dockerfile_text, spec.arguments(spec.base), spec.target)
    return {
        "canonical": spec.canonical().decode(),
        "sha256": spec.digest,
        "references": [reference.image for reference in references],
    }


def resolved(case: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a case, with what it takes from the environment."""
    found = OmegaConf.to_container(OmegaConf.create(case["config"]), resolve=True)
    assert isinstance(found, dict)
    return {str(name): value for name, value in found.items()}


def named(paths: Iterable[Path]) -> Any:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


@named(path for path in CASES if not path.stem.startswith("refused-"))
def test_files_and_configuration_give_the_canonical_form_and_the_hash(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = load(path)
    for name, value in case.get("environment", {}).items():
        monkeypatch.setenv(name, value)
    write(tmp_path, case["files"])
    assert expected(spec(case, tmp_path)) == case["expected"]


@named(path for path in CASES if not path.stem.startswith("refused-"))
def test_the_page_alone_is_enough_to_compute_them(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = load(path)
    for name, value in case.get("environment", {}).items():
        monkeypatch.setenv(name, value)
    write(tmp_path, case["files"])
    found = golden_reference.canonical(resolved(case), tmp_path, case.get("pins", {}), case.get("packages"))
    assert found == case["expected"]["canonical"]


@named(path for path in CASES if path.stem.startswith("refused-"))
def test_what_cannot_be_identified_is_refused(path: Path, tmp_path: Path) -> None:
    case = load(path)
    write(tmp_path, case["files"])
    with pytest.raises(BadInputError, match=case["refused"]):
        spec(case, tmp_path)


@named(path for path in CASES if not path.stem.startswith("refused-"))
def test_a_vector_is_true_to_itself(path: Path) -> None:
    """The canonical form is what any JSON library with these settings writes, and its sha256 is the hash."""
    case = load(path)
    canonical = case["expected"]["canonical"]
    again = json.dumps(json.loads(canonical), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert again == canonical
    assert hashlib.sha256(canonical.encode()).hexdigest() == case["expected"]["sha256"]
    if "same_as" in case:
        other = load(path.with_stem(case["same_as"]))
        assert case["expected"] == other["expected"]


def test_vectors_that_do_not_say_so_differ() -> None:
    digests = [case["expected"]["sha256"] for case in map(load, CASES) if "expected" in case and "same_as" not in case]
    assert len(set(digests)) == len(digests)
