"""A bundle -> a run of this project: folder, data in the cache, image on the engine; all of it checked before."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from repro import data, manifest, scratch
from repro.bundle import contents
from repro.bundle.checking import Checked, opened
from repro.bundle.contents import CODE, CODE_BUNDLE, DATA, IMAGE, OUTPUTS, RECORD
from repro.bundle.stored import Reader
from repro.cleaning import housekeeping
from repro.code import gitbundle, prefixes
from repro.code.checkout import write_commit
from repro.code.repository import git
from repro.engines.engine import Engine, connect
from repro.errors import BadInputError, EnvironmentUnfitError, RefusedError
from repro.experiment import DatasetConfig, Value
from repro.images import oci
from repro.images.pieces import Progress, Say
from repro.project import Project, cache_folder, ignored_folder
from repro.record import RunFolder

IMPORTING = ".importing-"  # folders that are renamed when they are whole


class Imported(Value, frozen=True, kw_only=True):
    """What an import came to."""

    run: str
    folder: str
    record: str  # sha256
    new: tuple[str, ...]  # of run, image, data NAME: what was not here before
    lacks: tuple[str, ...]  # of image, data NAME: what the bundle has not, being thin
    notices: tuple[str, ...] = ()


def project_at(folder: Path) -> Project:
    """The project around a folder; where there is none, the folder itself becomes one by the import."""
    try:
        return Project.find(folder)
    except BadInputError:
        return Project(folder)


def read(path: Path, project: Project, say: Say = lambda _line: None) -> str:
    """Bring a bundle in, with the engine of the environment; the id of its run, which is in the project now.

    Raises:
        BadInputError, EnvironmentUnfitError, RefusedError: as `bring`.
    """
    return bring(path, project, engine=connect, say=say).run


def bring(path: Path, project: Project, *, engine: Callable[[], Engine], say: Say) -> Imported:
    """Check a bundle, then bring in what is not here yet. It can be repeated, also after it was interrupted.

    Raises:
        BadInputError: the bundle is damaged.
        RefusedError: another run of the same id is here.
        EnvironmentUnfitError: the disk or the engine does not take it.
    """
    try:
        with opened(path, say) as (checked, reader):
            folder = RunFolder(project.runs / checked.record.planned.run)
            known = _is_here(folder, checked)
            with scratch.folder(IMPORTING, ignored_folder(project.runs)) as temporary:
                if not known:
                    say("unpacking the run")
                    _unpack_run(checked, reader, temporary)
                new = _data(checked, reader, say)
                loaded, notices = _image(checked, reader, engine, say)
                if not known:  # last: what is found under its id is there with all that belongs to it
                    new = [*(["run"] if _appeared(temporary / "run", folder, checked) else []), *new]
            housekeeping.remember(project.runs)
    except OSError as error:
        raise EnvironmentUnfitError(
            f"{path} cannot be brought in", evidence=[str(error)], hints=["free some space, then repeat the command"]
        ) from error
    return Imported(
        run=folder.path.name,
        folder=str(folder.path),
        record=checked.digest,
        new=(*new, *loaded),
        lacks=checked.lacks,
        notices=tuple(notices),
    )


def _is_here(folder: RunFolder, checked: Checked) -> bool:
    """Whether this very run is in the project. The folder of any other is left alone."""
    if not os.path.lexists(folder.path):
        return False
    here, there = _sha256(folder.record) if folder.record.exists() else "none", checked.sha256[RECORD]
    if here != there:
        raise RefusedError(
            f"{folder.path} is there already, and is another run than that of the bundle",
            evidence=[f"its record.json: sha256 {here}", f"the bundle's:    sha256 {there}"],
            hints=["import it elsewhere: REPRO_RUNS_DIR=FOLDER, or an empty folder"],
        )
    return True


def _appeared(made: Path, folder: RunFolder, checked: Checked) -> bool:
    """Give the run its place; False: another import of the bundle was faster."""
    try:
        made.rename(folder.path)
    except OSError:
        if not _is_here(folder, checked):
            raise
        return False
    return True


# data and image -------------------------------------------------------------------------------------------------


def _data(checked: Checked, reader: Reader, say: Say) -> list[str]:
    """The datasets, in the cache that all projects share; which were not there."""
    cache, new = cache_folder(), []
    for dataset in checked.record.planned.data:
        files = {file.path: file.sha256 for file in dataset.files}
        names = {path: f"{DATA}{dataset.name}/{path}" for path in files}
        config = DatasetConfig(files=files)
        if data.cached(dataset.name, config, cache=cache) or not set(names.values()) <= checked.files.keys():
            continue
        (cache / "data").mkdir(parents=True, exist_ok=True)
        with scratch.folder(IMPORTING, cache / "data") as unpacked:
            for path, name in names.items():
                _unpack(reader, name, unpacked / path)
            config = DatasetConfig(files=files, sources=(str(unpacked),))
            data.fetch(dataset.name, config, cache=cache, local=None, say=say, progress=False)
        new.append(f"data {dataset.name}")
    return new


def _image(checked: Checked, reader: Reader, engine: Callable[[], Engine], say: Say) -> tuple[list[str], list[str]]:
    """The image, on the engine; whether it was not there, and what the user should know."""
    content = checked.image
    if content is None:
        return [], []
    connected, used = engine(), checked.record.planned.image
    # not under the name that later runs here look for: what those use is not for a bundle to decide
    own = f"{content.tag}-{(used.content or used.id).removeprefix('sha256:')[:12]}"
    for name in (own, content.tag, used.id):
        present = connected.image(name)
        if present and (present.layers, present.settings) == (content.layers, content.settings):
            return [], []
    say(f"loading {content.tag}")
    layout = contents.part(checked.files, IMAGE)
    progress = Progress("loaded", sum(layout.values()), say)

    def blocks() -> Iterator[bytes]:
        for block in oci.archived(layout, lambda name: reader.blocks(IMAGE + name)):
            progress.add(len(block))
            yield block

    loaded, before = oci.put(connected, content, blocks())
    connected.tag(loaded.id, own)
    if before is None:
        connected.remove_image(content.tag)
    elif before.id != loaded.id:
        connected.tag(before.id, content.tag)
    return ["image"], [f"the image of the bundle is {own}; runs of your own build theirs"]


# the run --------------------------------------------------------------------------------------------------------


def _unpack_run(checked: Checked, reader: Reader, temporary: Path) -> None:
    """The run folder as `temporary`/run, its code compared with the commit that it should be."""
    made = RunFolder(temporary / "run")
    for each in (made.outputs, made.logs, made.journal, made.archive):
        each.mkdir(parents=True)
    made.elsewhere.touch()  # first of all: until then nobody knows that others decided what is in it
    own = (*contents.KEPT_FOLDERS, OUTPUTS)
    for name in checked.files:
        if name in contents.KEPT or name.startswith(own):
            _unpack(reader, name, made.path / name)
    _unpack(reader, CODE_BUNDLE, made.archive / CODE_BUNDLE)
    _check_code(checked, reader, made.archive, temporary)


def _check_code(checked: Checked, reader: Reader, archive: Path, temporary: Path) -> None:
    """See that the bundled commit holds the files that are in the bundle, and keep what stands behind LFS pointers."""
    planned = checked.record.planned
    bare = temporary / "git"
    bare.mkdir()
    repository = gitbundle.opened(archive, bare)
    held = git(repository.top, "rev-parse", "-q", "--verify", f"{planned.code.commit}^{{tree}}", fine=(0, 1, 128))
    if held.decode().strip() != planned.code.tree:
        raise BadInputError(
            f"{reader.path}: {CODE_BUNDLE} does not hold the commit of the record; no run was made of it",
            evidence=[
                f"commit {planned.code.commit}, tree {planned.code.tree}",
                f"found  {held.decode().strip() or 'none'}",
            ],
            hints=["have it exported again"],
        )
    prefix = prefixes.of(repository.top, planned)
    there = {checked.sha256[name]: name for name in checked.files if name.startswith(CODE)}
    for sha256 in gitbundle.contents(repository, planned.code.commit, prefix) & there.keys():
        _unpack(reader, there[sha256], temporary / "content")
        gitbundle.keep_content(archive, sha256, temporary / "content")
    if (archive / gitbundle.LFS).is_dir():
        (bare / gitbundle.LFS).symlink_to(archive / gitbundle.LFS)
    files = temporary / "files"
    write_commit(repository, planned.code.commit, prefix, files)
    found = {CODE + name: path for name, path in _written(files)}
    wanted = {name for name in checked.files if name.startswith(CODE)}
    if wrong := sorted(wanted ^ found.keys()) or [
        name for name, path in found.items() if _sha256(path) != checked.sha256[name]
    ]:
        raise BadInputError(
            f"{reader.path}: code/ is not what commit {planned.code.commit} holds; no run was made of it",
            evidence=wrong[:10],
            hints=["have it exported again"],
        )


def _written(folder: Path) -> list[tuple[str, Path]]:
    found = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return [(path.relative_to(folder).as_posix(), path) for path in found if not path.is_symlink()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return manifest.sha256(file)


def _unpack(reader: Reader, name: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        out.writelines(reader.blocks(name))
