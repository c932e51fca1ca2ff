"""The datasets of a run, by the sha256 of their files: in the cache, in the archive of an import, at their sources."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from repro import data
from repro.download import Say, Wanted
from repro.experiment import DatasetConfig, Experiment
from repro.project import Project, cache_folder
from repro.record import DatasetUsed, FileUsed, RunFolder
from repro.verdict import Ingredient

ONLY_HERE = "only in this cache"


def wanted(used: DatasetUsed, experiment: Experiment, project: Project, folder: RunFolder) -> DatasetConfig:
    """The dataset as it was recorded, at the sources that its configuration names, and in the archive first."""
    files = {file.path: file.sha256 for file in used.files}
    known = experiment.data.get(used.name)
    config = data.rooted({used.name: DatasetConfig(files=files, sources=known.sources if known else ())}, project.root)
    archived = folder.archive / "data" / used.name
    sources = (*([str(archived)] if archived.is_dir() else []), *config[used.name].sources)
    return msgspec.structs.replace(config[used.name], sources=sources)


def offline(config: DatasetConfig) -> DatasetConfig:
    """The same without sources that are not on this machine."""
    return msgspec.structs.replace(config, sources=tuple(each for each in config.sources if "://" not in each))


def look(used: DatasetUsed, config: DatasetConfig, *, ask: bool, offline: bool, deep: bool = False) -> Ingredient:
    """Where a dataset is. `ask` lets servers answer; `deep` reads every byte in the cache."""
    cache = cache_folder()
    remarks: list[str] = []
    found: list[str] = []
    if problem := _cache_damage(used, config, cache, deep=deep):
        remarks.append(f"cache: {problem}")
    else:
        found.append(f"cache {cache}")
    local = os.environ.get("REPRO_DATA_SOURCE")
    for source in dict.fromkeys(data.sources(local) + config.sources):
        if "://" in source and offline:
            continue
        if all(_offers(source, used, file, ask=ask) for file in used.files):
            found.append(source if "://" not in source or ask else f"{source} (not asked)")
    elsewhere = [each for each in found if not each.startswith("cache ")]
    if found and not elsewhere:
        remarks.append(ONLY_HERE if not offline or not any("://" in each for each in config.sources) else "")
    return Ingredient(
        kind="data",
        name=used.name,
        recorded=f"sha256 {used.digest}",
        found=tuple(found),
        use=found[0] if found else "",
        remark="; ".join(filter(None, remarks)),
    )


def _cache_damage(used: DatasetUsed, config: DatasetConfig, cache: Path, *, deep: bool) -> str | None:
    """What the cache lacks of a dataset; None when it has all of it."""
    if not deep and data.cached(used.name, config, cache=cache):
        return None
    for file in used.files:
        held = cache / "data" / "sha256" / file.sha256
        if not held.is_file():
            return f"{file.path} is not there"
        wrong = (
            held.stat().st_size != file.size if not deep else not Wanted(path="", sha256=file.sha256, held=held).here()
        )
        if wrong:
            return f"{file.path} is damaged"
    return None


def _offers(source: str, used: DatasetUsed, file: FileUsed, *, ask: bool) -> bool:
    """Whether a source has a file, as far as its length tells."""
    places = (f"{used.name}/{file.path}", file.path)
    if "://" not in source or source.startswith("file://"):
        return any(_size(data.join(source, each)) == file.size for each in places)
    return not ask or _answers(data.join(source, file.path), file.size)


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1


def _answers(url: str, size: int) -> bool:
    import requests

    try:
        answer = requests.head(url, allow_redirects=True, timeout=10, headers={"Accept-Encoding": "identity"})
    except requests.RequestException:
        return False
    length = answer.headers.get("Content-Length")
    return answer.ok and (length is None or length == str(size))


def fetch(
    used: tuple[DatasetUsed, ...],
    experiment: Experiment,
    project: Project,
    folder: RunFolder,
    *,
    no_network: bool,
    say: Say,
    progress: bool,
) -> Iterator[DatasetUsed]:
    """The datasets of a run, on disk, every byte as it was recorded.

    Raises:
        EnvironmentUnfitError: one cannot be had.
    """
    for each in used:
        config = wanted(each, experiment, project, folder)
        config = offline(config) if no_network else config
        local = os.environ.get("REPRO_DATA_SOURCE")
        if no_network and local:
            local = " ".join(place for place in data.sources(local) if "://" not in place)
        yield data.fetch(each.name, config, cache=cache_folder(), local=local, say=say, progress=progress)
