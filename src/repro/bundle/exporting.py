"""A finished run -> one file with everything that it takes to run it again. The same run gives the same bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from repro import manifest, scratch
from repro.bundle import contents, crate, script, stored
from repro.bundle.contents import CODE, CODE_BUNDLE, DATA, FETCH, IMAGE, INSIDE, MANIFEST, OUTPUTS, Entry
from repro.bundle.stored import Writer
from repro.code import gitbundle, prefixes
from repro.code.checkout import write_commit
from repro.code.repository import open_repository
from repro.download import public
from repro.engines.engine import Engine
from repro.errors import BadInputError, EnvironmentUnfitError
from repro.experiment import DatasetConfig, Value
from repro.images import oci
from repro.images.pieces import Progress, Say
from repro.project import Project, cache_folder
from repro.record import Record, RunFolder, shown
from repro.restoring import codes
from repro.running.plan import INSIDE as MOUNTED

Files = dict[str, Entry]
# folders that begin so and nobody holds are removed: it is no name of the user's, or `-o venv` would cost a .venv-old
EXPORTING = ".repro-exporting-"


class Exported(Value, frozen=True, kw_only=True):
    """What was written."""

    file: str
    run: str
    record: str  # sha256
    size: int  # bytes
    files: int


def export(
    record: Record,
    folder: RunFolder,
    project: Project,
    path: Path,
    *,
    engine: Callable[[], Engine],
    thin: bool,
    say: Say,
) -> Exported:
    """Write the bundle of a run to `path`, which appears when it is whole. `thin`: without image and data.

    Needs room for image and code twice while it lasts, and no memory to speak of.

    Raises:
        BadInputError: the run is not over, a name in it cannot be in a zip, or `path` is something else than a file.
        EnvironmentUnfitError: something of the run is lost, or the disk does not take it.
    """
    if record.ended is None:
        raise BadInputError(f"{record.planned.run} is not over", hints=[f"`repro wait {record.planned.run}`"])
    _check_place(path)
    used = record.planned.image
    try:
        with scratch.folder(EXPORTING, path.parent) as beside:
            digest = hashlib.sha256(contents.canonical(record)).hexdigest()
            files = _own(record, folder) | _outputs(record, folder)
            files |= {name: _file(place) for name, place in contents.files_below(MOUNTED, INSIDE).items()}
            code, details = _code(record, folder, project, beside, say)
            ours = [name for name, each in files.items() if each.path and Path(each.path).stat().st_mode & 0o111]
            details = msgspec.structs.replace(details, programs=(*details.programs, *ours))
            layout = None if thin else _image(record, engine(), beside, say)
            data = {} if thin else _data(record)
            image = layout.small | layout.large if layout else {}
            files |= code | data | _laid_out(layout)
            if thin:
                files[FETCH] = contents.of_bytes(_fetch(record))
            sizes = {name: files[IMAGE + name].size for name in image}
            lists = script.lists(record.ended.outputs)
            files |= {name: contents.of_bytes(text) for name, text in lists.items()}
            files["reproduce.sh"] = contents.of_bytes(
                script.text(record, details, sizes, layout.layers if layout else used.layers)
            )
            files["REPRODUCE.md"] = contents.of_bytes(script.guide(record, digest, thin=thin))
            described = {name: crate.File(size=each.size, sha256=each.sha256) for name, each in _sorted(files)}
            files[crate.NAME] = contents.of_bytes(
                crate.metadata(record, digest, described, layout.manifest if layout else None)
            )
            files[MANIFEST] = contents.of_bytes(script.sums({name: each.sha256 for name, each in files.items()}))
            size = _write(files, beside / "bundle", say)
            (beside / "bundle").replace(path)
    except OSError as error:
        raise EnvironmentUnfitError(
            f"{path} cannot be written", evidence=[str(error)], hints=["`-o FILE` puts it on another disk"]
        ) from error
    return Exported(file=str(path), run=record.planned.run, record=digest, size=size, files=len(files))


def _check_place(path: Path) -> None:
    """A device or a pipe would be replaced by the file, and not be written to."""
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise BadInputError(
            f"{path} is there, and no file: a bundle would take its place", hints=["`-o FILE` names a file"]
        )


def _sorted(files: Files) -> list[tuple[str, Entry]]:
    return sorted(files.items(), key=lambda pair: pair[0].encode())


# what goes in ---------------------------------------------------------------------------------------------------


def _file(path: Path) -> Entry:
    with path.open("rb") as file:
        return Entry(size=path.stat().st_size, sha256=manifest.sha256(file), path=str(path))


def _own(record: Record, folder: RunFolder) -> Files:
    """What the run folder says of itself."""
    found = {name: folder.path / name for name in contents.KEPT if (folder.path / name).is_file()}
    for name in contents.KEPT_FOLDERS:
        found |= contents.files_below(folder.path / name, name)
    return {name: _file(path) for name, path in found.items()} | {
        contents.CANONICAL: contents.of_bytes(contents.canonical(record))
    }


def _outputs(record: Record, folder: RunFolder) -> Files:
    """The outputs that the record lists, with the bytes that it says."""
    there = {shown(name): path for path, name in manifest.walk(folder.outputs)}
    files: Files = {}
    for output in record.ended.outputs if record.ended else ():
        if output.path not in there:
            raise EnvironmentUnfitError(
                f"an output of {record.planned.run} is lost: {output.path}", evidence=[f"sha256 {output.sha256}"]
            )
        found = _file(there[output.path])
        if found.sha256 != output.sha256:
            raise EnvironmentUnfitError(
                f"an output of {record.planned.run} is not as it was written: {output.path}",
                evidence=[f"recorded  {output.sha256}", f"found     {found.sha256}"],
                hints=["somebody changed it after the run: put it back"],
            )
        files[OUTPUTS + output.path] = found
    return files


def _code(record: Record, folder: RunFolder, project: Project, beside: Path, say: Say) -> tuple[Files, script.Code]:
    """The commit as a git bundle, and its files as they were mounted."""
    say("packing the code")
    bundle, files = beside / CODE_BUNDLE, beside / "code"
    commit, archive = record.planned.code.commit, codes.keeper(record, folder).archive
    if (archive / CODE_BUNDLE).is_file():
        (beside / "git").mkdir()
        repository = gitbundle.opened(archive, beside / "git")
        prefix = prefixes.of(repository.top, record.planned)
        bundle = archive / CODE_BUNDLE
    else:
        repository = open_repository(project.root)
        prefix = prefixes.of(repository.top, record.planned)
        gitbundle.write(repository, commit, prefix, bundle)
    write_commit(repository, commit, prefix, files)
    found: Files = {CODE_BUNDLE: _file(bundle)}
    programs, links = [], {}
    for parent, folders, names in os.walk(files):
        for name in [*folders, *names]:
            path = Path(parent, name)
            relative = path.relative_to(files).as_posix()
            if path.is_symlink():
                links[_utf8(relative)] = _utf8(str(path.readlink()))
            elif path.is_file():
                found[CODE + _utf8(relative)] = _file(path)
                if path.stat().st_mode & 0o111:
                    programs.append(CODE + relative)
    return found, script.Code(programs=tuple(programs), links=links)


def _utf8(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadInputError(
            f"{shown(name)} cannot be in a bundle: names in a zip file are UTF-8", hints=["rename the file"]
        ) from None
    return name


def _data(record: Record) -> Files:
    """The datasets out of the cache, or from where the run had them."""
    files: Files = {}
    for dataset in record.planned.data:
        for file in dataset.files:
            places = (cache_folder() / "data" / "sha256" / file.sha256, Path(dataset.folder) / file.path)
            place = next((place for place in places if place.is_file()), None)
            if place is None:
                raise EnvironmentUnfitError(
                    f"dataset {dataset.name} of {record.planned.run} is lost: {file.path}",
                    evidence=[f"sha256 {file.sha256}", *(f"not at {place}" for place in places)],
                    hints=["a run of the experiment fetches it again", "`--thin` exports without data and image"],
                )
            files[f"{DATA}{dataset.name}/{file.path}"] = Entry(
                size=place.stat().st_size, sha256=file.sha256, path=str(place)
            )
    return files


def _image(record: Record, engine: Engine, beside: Path, say: Say) -> oci.Layout:
    used = record.planned.image
    there = [each for each in map(engine.image, (used.id, used.tag)) if each]
    same = [each for each in there if used.settings in (each.settings, "")]
    # records of earlier versions list no layers, and have to be content with the id
    found = next(
        (each for each in same if each.layers == used.layers or (not used.layers and each.id == used.id)), None
    )
    if found is None:
        raise EnvironmentUnfitError(
            f"the image of {record.planned.run} is not on this engine: {used.tag}",
            evidence=[f"id {used.id}", f"content {used.content}"],
            hints=["`repro export --thin` exports without it and without data"],
        )
    (beside / "image").mkdir()
    return oci.layout_of(engine, found, used.tag, beside / "image", say)


def _laid_out(layout: oci.Layout | None) -> Files:
    if layout is None:
        return {}
    small = {IMAGE + name: contents.of_bytes(content) for name, content in layout.small.items()}
    return small | {
        IMAGE + name: Entry(size=blob.size, sha256=blob.sha256, path=blob.path, passing=True)
        for name, blob in layout.large.items()
    }


def _fetch(record: Record) -> bytes:
    """What a thin bundle lacks, a line each: sha256 or digest, size in bytes, name in the bundle, where it is from."""
    used = record.planned.image
    lines = [(used.config or used.id, "-", IMAGE.rstrip("/"), used.digest or "-")]
    configured = record.planned.config.get("data") or {}
    for dataset in record.planned.data:
        sources = msgspec.convert(configured[dataset.name], DatasetConfig).sources if dataset.name in configured else ()
        remote = [source for source in sources if "://" in source and not source.startswith("file:")]
        for file in dataset.files:
            urls = " ".join(f"{public(source).rstrip('/')}/{file.path}" for source in remote)
            lines.append((file.sha256, str(file.size), f"{DATA}{dataset.name}/{file.path}", urls or "-"))
    return "".join("\t".join(line) + "\n" for line in lines).encode()


# writing --------------------------------------------------------------------------------------------------------


def _write(files: Files, path: Path, say: Say) -> int:
    """The size of the written file."""
    progress = Progress("wrote", sum(entry.size for entry in files.values()), say)
    folders = {name: contents.of_bytes(b"") for name in stored.folders(files)}
    with path.open("wb") as out:
        writer = Writer(out)
        for name, entry in _sorted(files | folders):
            writer.add(name, entry.size, _blocks(name, entry, progress))
        writer.close()
        out.flush()
        os.fsync(out.fileno())
        return out.tell()


def _blocks(name: str, entry: Entry, progress: Progress) -> Iterator[bytes]:
    """An entry's content, which is what it was when it was listed."""
    if entry.path is None:
        yield entry.content
        return
    hasher, left = hashlib.sha256(), entry.size
    with Path(entry.path).open("rb") as file:
        while left and (block := file.read(min(left, manifest.BLOCK))):
            hasher.update(block)
            left -= len(block)
            progress.add(len(block))
            yield block
        changed = bool(left or file.read(1))
    if changed or hasher.hexdigest() != entry.sha256:
        raise EnvironmentUnfitError(
            f"{name} is not as it was recorded, or changed while it was exported",
            evidence=[f"file      {entry.path}", f"expected  {entry.sha256}", f"found     {hasher.hexdigest()}"],
            hints=["repeat the command; a dataset's file in the cache is fetched anew after it is removed"],
        )
    if entry.passing:
        Path(entry.path).unlink()
