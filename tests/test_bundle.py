"""Bundles without an engine: the zip, the git bundle, the crate, and that no changed byte goes unnoticed."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

from repro import identity, manifest
from repro.bundle import checking, contents, exporting, importing, script, stored
from repro.bundle.stored import Member, Reader, Writer
from repro.code import gitbundle, source
from repro.code.checkout import write_commit
from repro.code.repository import open_repository
from repro.engines.engine import Engine
from repro.errors import BadInputError, EnvironmentUnfitError, RefusedError
from repro.project import Project
from repro.record import Code, DatasetUsed, End, Ended, FileUsed, Record, RunFolder, Started
from repro.restoring import codes
from tests.conftest import commit
from tests.test_plan import decided

T0 = datetime(2026, 11, 23, 19, 15, tzinfo=timezone.utc)
FILES = {"a/b": b"", "a-b": b"1", "ä\n\\": b"22" * 20, "reproduce.sh": b"#!/bin/sh\n"}


def quiet(_line: str) -> None:
    """Nobody listens."""


def no_engine() -> Engine:
    raise AssertionError("nothing of this needs an engine")


# the zip --------------------------------------------------------------------------------------------------------


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    writer = Writer(out)
    whole = dict.fromkeys(stored.folders(files), b"") | files
    for name in sorted(whole, key=str.encode):
        writer.add(name, len(whole[name]), [whole[name][:7], whole[name][7:]])
    writer.close()
    return out.getvalue()


def test_other_programs_read_the_zip(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(zipped(FILES))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {"a/": b"", **FILES}
    done = subprocess.run(["unzip", "-tqq", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("sizes", [[3 << 30, 3 << 30, 1], [5 << 30, 2], [1] * 70_000], ids=["far", "large", "many"])
def test_a_zip_may_be_larger_than_its_first_form_allows(tmp_path: Path, sizes: list[int]) -> None:
    members = [Member(name=f"{number:06}", size=size, crc=0) for number, size in enumerate(sizes)]
    path = tmp_path / "x.zip"
    with path.open("wb") as out:
        for member in members:
            out.write(stored.header(member))
            out.seek(member.size, 1)  # holes
        out.write(stored.table(members))
    with zipfile.ZipFile(path) as archive:
        assert [each.file_size for each in archive.infolist()] == sizes
        archive.open(archive.infolist()[-1]).close()  # its header is where the table says
    with path.open("rb") as file:
        assert list(Reader(file, path).members.values()) == members


def test_every_byte_of_a_zip_that_stands_around_contents_is_checked(tmp_path: Path) -> None:
    whole = zipped(FILES)
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        try:
            reader = Reader(io.BytesIO(changed), Path("x"))
        except BadInputError:
            continue
        found = {name: reader.read(name) for name in reader.members if reader.framed(name)}
        assert found != FILES or not reader.framed("a/"), place


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a/./b", "", "a\0b"])
def test_a_name_that_leads_out_of_the_bundle_is_refused(name: str) -> None:
    out = io.BytesIO()
    writer = Writer(out)
    for each in [*stored.folders([name]), name]:
        writer.add(each, 0, [])
    writer.close()
    with pytest.raises(BadInputError, match="is no bundle"):
        Reader(out, Path("x"))


@pytest.mark.parametrize("content", [b"", b"x" * 5, b"PK\5\6" + b"\0" * 18, b"hello\n" * 1000])
def test_what_is_no_bundle_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(BadInputError), checking.opened(tmp_path / "x", quiet):
        pass


def test_a_table_of_contents_that_is_said_to_be_all_of_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as out:
        out.truncate(1 << 40)  # a hole
        out.seek(0, 2)
        out.write(stored.END.pack(b"PK\5\6", 0, 0, 1, 1, 100, 0, 0))
    with pytest.raises(BadInputError, match="is no bundle"), checking.opened(tmp_path / "x", quiet):
        pass


def test_a_zip_of_another_program_is_no_bundle(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(1 << 20))
    with pytest.raises(BadInputError, match="is no bundle"), checking.opened(tmp_path / "x.zip", quiet):
        pass


def test_lists_are_read_by_sha256sum_and_by_us(tmp_path: Path) -> None:
    names = ["plain", "two words", "back\\slash", "new\nline", "\\n", " lead"]
    for name in names:
        (tmp_path / name).write_text(name)
    sums = {name: contents.of_bytes(name.encode()).sha256 for name in names}
    listed = script.sums(sums)
    done = subprocess.run(["sha256sum", "--strict", "-c", "-"], input=listed, cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert dict(contents.listed(listed)) == sums


# the git bundle -------------------------------------------------------------------------------------------------


def git(root: Path, *arguments: str) -> str:
    allowed = ("-c", "protocol.file.allow=always")
    return subprocess.run(
        ["git", "-C", str(root), *allowed, *arguments], check=True, capture_output=True, text=True
    ).stdout


def bundled(root: Path, path: Path, commit: str, prefix: str = "") -> bytes:
    gitbundle.write(open_repository(root), commit, prefix, path)
    return path.read_bytes()


def test_a_git_bundle_is_the_same_whatever_state_its_repository_is_in(project: Project, tmp_path: Path) -> None:
    root = project.root
    dice = random.Random(5)
    text = [f"line {number} {dice.random()}\n" for number in range(2000)]
    for number in range(12):
        text[dice.randrange(2000)] = f"changed {number}\n"
        (root / "long").write_text("".join(text))
        (root / "data").write_bytes(dice.randbytes(5000))
        made = commit(root)
    loose = bundled(root, tmp_path / "1", made)
    git(root, "config", "pack.compression", "1")
    git(root, "config", "pack.depth", "3")
    git(root, "gc", "-q", "--aggressive", "--prune=now")
    git(root, "repack", "-q", "-a", "-d", "-b", "-f", "--window=3")
    git(root, "commit-graph", "write", "--reachable")
    packed = bundled(root, tmp_path / "2", made)
    git(tmp_path, "clone", "-q", "--no-local", str(root), "clone")
    cloned = bundled(tmp_path / "clone", tmp_path / "3", made)
    assert loose == packed == cloned
    git(tmp_path, "clone", "-q", str(tmp_path / "1"), "from-bundle")
    assert git(tmp_path / "from-bundle", "rev-parse", "HEAD").strip() == made
    assert (tmp_path / "from-bundle" / "long").read_text() == "".join(text)


def test_a_git_bundle_holds_submodules_and_what_stands_behind_lfs_pointers(project: Project, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "text").write_text("inside\n")
    commit(inner)
    root = project.root
    git(root, "submodule", "--quiet", "add", str(inner), "sub")
    (root / "sub" / "uncommitted").write_text("in the submodule\n")
    content = b"large\n"
    digest = contents.of_bytes(content).sha256
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n"
    (root / "large.bin").write_text(pointer)
    commit(root)
    (root / ".gitattributes").write_text("*.bin filter=lfs\n")
    store = root / ".git" / "lfs" / "objects" / digest[:2] / digest[2:4]
    store.mkdir(parents=True)
    (store / digest).write_bytes(content)
    snapshot = source.capture(root)
    archive = tmp_path / "archive"
    archive.mkdir()
    bundled(root, archive / gitbundle.NAME, snapshot.commit)
    shutil.rmtree(root)
    (tmp_path / "held").write_bytes(content)
    (tmp_path / "git").mkdir()
    repository = gitbundle.opened(archive, tmp_path / "git")
    assert gitbundle.contents(repository, snapshot.commit, "") == {digest}
    gitbundle.keep_content(archive, digest, tmp_path / "held")
    (tmp_path / "git2").mkdir()
    write_commit(gitbundle.opened(archive, tmp_path / "git2"), snapshot.commit, "", tmp_path / "files")
    assert (tmp_path / "files" / "sub" / "text").read_text() == "inside\n"
    assert (tmp_path / "files" / "sub" / "uncommitted").read_text() == "in the submodule\n"
    assert (tmp_path / "files" / "large.bin").read_bytes() == content


def test_a_shallow_clone_is_refused_with_what_to_do(project: Project, tmp_path: Path) -> None:
    commit(project.root)
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{project.root}", "shallow")
    made = git(tmp_path / "shallow", "rev-parse", "HEAD").strip()
    with pytest.raises(BadInputError, match="shallow") as caught:
        bundled(tmp_path / "shallow", tmp_path / "x", made)
    assert caught.value.hints == ("`git fetch --unshallow`",)


# a bundle without image and data ----------------------------------------------------------------------------------


@pytest.fixture
def run(project: Project) -> RunFolder:
    """The folder of a finished run, made by hand."""
    made = commit(project.root)
    tree = git(project.root, "rev-parse", "HEAD^{tree}").strip()
    planned = msgspec.structs.replace(
        decided().planned,
        project=str(project.root),
        data=(),
        code=Code(commit=made, tree=tree, head=made, branch="main", remote="https://example.com/x", dirty=False),
    )
    folder = RunFolder(project.runs / planned.run)
    for each in (folder.outputs, folder.logs, folder.journal, folder.inputs, folder.verifications):
        each.mkdir(parents=True)
    (folder.outputs / "two words").write_text("two\n")
    (folder.outputs / "caf\udce9").write_text("no UTF-8\n")
    (folder.outputs / "time.txt").write_text("12:00\n")
    files = msgspec.structs.replace(manifest.of(folder.outputs)).files
    outputs = tuple(
        msgspec.structs.replace(each, role="by-product" if each.path == "time.txt" else "result") for each in files
    )
    ended = Ended(at=T0, end=End.FINISHED, exit_code=0, reason="exit code 0", outputs=outputs)
    started = Started(at=T0, container="c" * 64, gpus="none")
    folder.write(Record(planned=planned, started=started, ended=ended))
    folder.output_log.write_text("hello\n")
    folder.config_json.write_bytes(msgspec.json.encode(planned.config))
    folder.config_yaml.write_text("name: toy\n")
    (folder.inputs / "docker").mkdir()
    (folder.inputs / "docker" / "Dockerfile").write_text("FROM scratch\n")
    (folder.inputs / "repro.lock").write_text("lock\n")
    (folder.verifications / "other.json").write_text("{}\n")
    folder.tracking.write_text("{}")
    return folder


@pytest.fixture
def bundle(run: RunFolder, project: Project, tmp_path: Path) -> Path:
    """The run as a thin bundle."""
    return exported(run, project, tmp_path / "run.crate.zip")


def exported(run: RunFolder, project: Project, path: Path) -> Path:
    exporting.export(run.read(), run, project, path, engine=no_engine, thin=True, say=quiet)
    return path


def imported(bundle: Path, root: Path) -> importing.Imported:
    return importing.bring(bundle, Project(root), engine=no_engine, say=quiet)


def unzipped(bundle: Path, folder: Path) -> Path:
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(folder)
    return folder


def test_a_bundle_holds_what_the_run_was_and_nothing_of_this_machine(bundle: Path, run: RunFolder) -> None:
    with zipfile.ZipFile(bundle) as archive:
        names = [name for name in archive.namelist() if not name.startswith("inside/") and name[-1] != "/"]
        record = archive.read("record.json")
        canonical = archive.read("record.canonical.json")
    assert names == [
        "REPRODUCE.md",
        "code.bundle",
        "code/conf/experiment/toy.yaml",
        "code/docker/Dockerfile",
        "code/docker/requirements.txt",
        "code/toy.sh",
        "config.json",
        "config.yaml",
        "expected/by-meaning-sha256.txt",
        "expected/by-products-sha256.txt",
        "expected/results-sha256.txt",
        "fetch.txt",
        "inputs/docker/Dockerfile",
        "inputs/repro.lock",
        "logs/output.log",
        "manifest-sha256.txt",
        "outputs/caf\\xe9",
        "outputs/time.txt",
        "outputs/two words",
        "record.canonical.json",
        "record.json",
        "reproduce.sh",
        "ro-crate-metadata.json",
        "verifications/other.json",
    ]
    assert record == run.record.read_bytes()
    assert contents.of_bytes(canonical).sha256 == identity.record_digest(run.read())


def test_sha256sum_proves_every_file_of_it(bundle: Path, tmp_path: Path) -> None:
    folder = unzipped(bundle, tmp_path / "unzipped")
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", "manifest-sha256.txt"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    listed = dict(contents.listed((folder / "manifest-sha256.txt").read_bytes()))
    assert files - listed.keys() == {"manifest-sha256.txt"}


def test_an_imported_run_is_what_it_was_and_its_bundle_the_same_file_again(
    bundle: Path, run: RunFolder, project: Project, tmp_path: Path
) -> None:
    kept = run.path.rename(tmp_path / "kept")
    shutil.rmtree(project.root)
    root = tmp_path / "elsewhere"
    root.mkdir()
    done = imported(bundle, root)
    found = RunFolder(Path(done.folder))
    assert (done.new, done.lacks) == (("run",), ("image",))
    assert found.read() == RunFolder(kept).read()
    assert found.record.read_bytes() == (kept / "record.json").read_bytes()
    assert found.output_log.read_text() == "hello\n"
    assert (found.inputs / "repro.lock").read_text() == "lock\n"
    assert [path.name for path in found.archive.iterdir()] == ["code.bundle"]
    assert exported(found, Project(root), tmp_path / "again.zip").read_bytes() == bundle.read_bytes()
    assert imported(bundle, root).new == ()
    assert sorted(path.name for path in (root / "runs").iterdir()) == [".gitignore", done.run]


def test_a_run_that_reproduces_an_imported_one_has_its_code_too(bundle: Path, tmp_path: Path) -> None:
    original = Path(imported(bundle, tmp_path / "there").folder)
    again = RunFolder(original.parent / "20261124-080000-toy-aa11bb")
    shutil.copytree(original, again.path, ignore=shutil.ignore_patterns("archive"))
    record = again.read()
    planned = msgspec.structs.replace(record.planned, run=again.path.name, reproduces=original.name)
    again.write(msgspec.structs.replace(record, planned=planned))
    project = Project(tmp_path / "there")
    assert codes.look(again.read(), again, project).found == (f"bundle {original / 'archive' / 'code.bundle'}",)
    assert exported(again, project, tmp_path / "again.zip").is_file()


def test_of_two_imports_at_once_the_slower_one_finds_the_run_there(bundle: Path, tmp_path: Path) -> None:
    other: list[importing.Imported] = []

    def meanwhile(line: str) -> None:
        if line == "unpacking the run" and not other:
            other.append(imported(bundle, tmp_path))

    slower = importing.bring(bundle, Project(tmp_path), engine=no_engine, say=meanwhile)
    assert (other[0].new, slower.new, slower.folder) == (("run",), (), other[0].folder)


def test_another_run_of_the_same_id_is_left_alone(bundle: Path, run: RunFolder, project: Project) -> None:
    record = run.read()
    run.write(msgspec.structs.replace(record, planned=msgspec.structs.replace(record.planned, name="other")))
    before = run.record.read_bytes()
    with pytest.raises(RefusedError, match="is another run"):
        imported(bundle, project.root)
    assert run.record.read_bytes() == before


def members(bundle: Path) -> Iterator[tuple[str, int, int]]:
    """Each file in a bundle: where its content is, and its size."""
    with bundle.open("rb") as file:
        reader = Reader(file, bundle)
        for name, member in reader.members.items():
            yield name, reader.starts[name], member.size


def test_a_changed_byte_of_any_file_is_found_and_named_with_both_digests(
    bundle: Path, tmp_path: Path, project: Project
) -> None:
    whole = bundle.read_bytes()
    changed = tmp_path / "changed.zip"
    dice = random.Random(3)
    for name, start, size in members(bundle):
        if not size:
            continue
        content = bytearray(whole)
        content[start + dice.randrange(size)] ^= 1 << dice.randrange(8)
        changed.write_bytes(content)
        with pytest.raises(BadInputError) as caught:
            imported(changed, tmp_path)
        found = contents.of_bytes(bytes(content[start : start + size])).sha256
        (evidence,) = caught.value.evidence
        assert evidence.startswith(f"{name}: expected ")
        assert found in evidence or name == "manifest-sha256.txt"
    assert not (tmp_path / "runs").exists()


def test_a_changed_byte_anywhere_is_found(bundle: Path, tmp_path: Path) -> None:
    whole = bundle.read_bytes()
    changed = tmp_path / "changed.zip"
    dice = random.Random(4)
    inside = [start for _name, start, _size in members(bundle)]
    around = [start - 1 - dice.randrange(30) for start in inside]  # headers
    for place in [*around, *range(len(whole) - 22, len(whole)), *dice.sample(range(len(whole)), 100)]:
        content = bytearray(whole)
        content[place] ^= 1 << dice.randrange(8)
        changed.write_bytes(content)
        with pytest.raises(BadInputError), checking.opened(changed, quiet):
            pass


@pytest.mark.parametrize("size", [0, 1, 21, 22, 5000, -1, -22, -1000])
def test_a_bundle_that_ends_in_the_middle_is_no_bundle(bundle: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "cut.zip").write_bytes(bundle.read_bytes()[:size])
    with pytest.raises(BadInputError), checking.opened(tmp_path / "cut.zip", quiet):
        pass


def rewritten(bundle: Path, path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The bundle with other contents, and a manifest that fits them."""
    with zipfile.ZipFile(bundle) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name[-1] != "/"}
    change(files)
    sums = {name: contents.of_bytes(each).sha256 for name, each in files.items() if name != "manifest-sha256.txt"}
    files["manifest-sha256.txt"] = script.sums(sums)
    path.write_bytes(zipped(files))
    return path


LIES: dict[str, tuple[Callable[[dict[str, bytes]], Any], str]] = {
    "another output": (lambda files: files.update({"outputs/two words": b"x"}), "outputs/two words: the record says"),
    "an output more": (lambda files: files.update({"outputs/more": b"x"}), "outputs/more is not in the record"),
    "an output less": (lambda files: files.pop("outputs/time.txt"), "found nothing"),
    "another program": (lambda files: files.update({"code/toy.sh": b"rm -rf /"}), "code/toy.sh"),
    "a program more": (lambda files: files.update({"code/sitecustomize.py": b"x"}), "code/sitecustomize.py"),
    "another record": (
        lambda files: files.update({"record.json": files["record.json"].replace(b"finished", b"failed")}),
        "is not the canonical form",
    ),
    "no code": (lambda files: files.pop("code.bundle"), "code.bundle is missing"),
    "another configuration": (lambda files: files.update({"config.json": b"{}"}), "config.json"),
}


def later(files: dict[str, bytes], **planned: Any) -> None:
    """A record as a later version would write it, with a member that we do not know; the canonical form stays."""
    record = msgspec.json.decode(files["record.json"])
    record["planned"].update(planned, news="x")
    files["record.json"] = msgspec.json.encode(record)


def planned(files: dict[str, bytes], **changes: Any) -> None:
    """Another record, in both forms."""
    record = msgspec.json.decode(files["record.json"], type=Record)
    record = msgspec.structs.replace(record, planned=msgspec.structs.replace(record.planned, **changes))
    files.update({"record.json": msgspec.json.encode(record), "record.canonical.json": identity.canonical(record)})


def named(files: dict[str, bytes], **code: Any) -> None:
    """A record of another commit."""
    used = msgspec.json.decode(files["record.json"], type=Record).planned.code
    planned(files, code=msgspec.structs.replace(used, **code))


LIES |= {
    "the published name of another record": (
        lambda files: later(files, command=["rm", "-rf", "/"]),
        "is not the canonical form",
    ),
    "other digests to compare with": (
        lambda files: files.update({"expected/results-sha256.txt": b""}),
        "expected/results-sha256.txt is not what the record says",
    ),
    "a run that is a way out": (lambda files: planned(files, run="../x"), "'../x' is no id of a run"),
    "a dataset that is a mount": (
        lambda files: planned(
            files, data=(DatasetUsed(name="a,source=/root", digest="b" * 64, files=(), folder="/d"),)
        ),
        "is no name of a dataset",
    ),
    "an option of git as commit": (lambda files: named(files, commit="--no-index"), "names no commit"),
    "a ref as commit": (lambda files: named(files, commit="HEAD"), "names no commit"),
    "another tree": (lambda files: named(files, tree="a" * 40), "does not hold the commit of the record"),
    "no configuration": (lambda files: files.update({"config.json": b"{"}), "config.json is no JSON"),
    "a deep configuration": (lambda files: files.update({"config.json": b"[" * 10**5}), "config.json is no JSON"),
    "a deep record": (lambda files: files.update({"record.json": b'{"a":' * 10**5}), "record.json is no JSON"),
    "a deep member": (
        lambda files: later(files, config=msgspec.json.decode(b'{"a":' * 600 + b"1" + b"}" * 600)),
        "the record cannot be read",
    ),
    "no git bundle": (lambda files: files.update({"code.bundle": b"# v3\n@object-format=\xff\n"}), "git"),
}


def test_a_record_of_a_later_version_is_taken_with_the_name_that_it_has_there(bundle: Path, tmp_path: Path) -> None:
    newer = rewritten(bundle, tmp_path / "newer.zip", later)
    assert imported(newer, tmp_path).record == imported(bundle, tmp_path / "other").record


@pytest.mark.parametrize("lie", LIES)
def test_a_bundle_that_is_whole_and_does_not_fit_its_record_is_refused(bundle: Path, tmp_path: Path, lie: str) -> None:
    change, told = LIES[lie]
    lying = rewritten(bundle, tmp_path / "lying.zip", change)
    with pytest.raises(BadInputError) as caught:
        imported(lying, tmp_path)
    assert told in str(caught.value)
    assert not list(tmp_path.glob("runs/2*"))


def test_an_output_that_somebody_changed_or_removed_is_not_exported(
    run: RunFolder, project: Project, tmp_path: Path
) -> None:
    (run.outputs / "two words").write_text("changed\n")
    with pytest.raises(EnvironmentUnfitError, match="is not as it was written"):
        exported(run, project, tmp_path / "x.zip")
    (run.outputs / "two words").unlink()
    with pytest.raises(EnvironmentUnfitError, match="is lost: two words"):
        exported(run, project, tmp_path / "x.zip")
    assert not list(tmp_path.glob("*x.zip*"))


def test_a_run_of_before_records_told_the_projects_folder_travels_all_the_same(
    run: RunFolder, project: Project, tmp_path: Path
) -> None:
    inner = Project(tmp_path / "mono" / "sub")
    shutil.copytree(project.root, inner.root, ignore=shutil.ignore_patterns(".git", "runs", ".repro"))
    made = commit(inner.root.parent)
    tree = git(inner.root, "rev-parse", "HEAD^{tree}").strip()
    shutil.copytree(run.path, inner.runs / run.path.name)
    folder, record = RunFolder(inner.runs / run.path.name), run.read()
    code = msgspec.structs.replace(record.planned.code, commit=made, tree=tree)
    planned = msgspec.structs.replace(record.planned, code=code, project=str(inner.root), code_prefix="", run_key="")
    folder.write(msgspec.structs.replace(record, planned=planned))
    path = exported(folder, inner, tmp_path / "old.zip")
    with zipfile.ZipFile(path) as archive:
        assert "code/toy.sh" in archive.namelist()
    there = Path(imported(path, tmp_path / "new").folder)
    found = codes.materialise(RunFolder(there).read(), RunFolder(there), Project(tmp_path / "new"))
    assert (found.prefix, (found.folder / "toy.sh").is_file()) == ("sub", True)


def test_a_run_that_is_not_over_is_not_exported(run: RunFolder, project: Project, tmp_path: Path) -> None:
    run.write(msgspec.structs.replace(run.read(), ended=None))
    with pytest.raises(BadInputError, match="is not over"):
        exported(run, project, tmp_path / "x.zip")


def test_folders_that_are_named_like_the_file_stay(run: RunFolder, project: Project, tmp_path: Path) -> None:
    (tmp_path / ".venv-old").mkdir()
    (tmp_path / ".venv-old" / "mine").write_text("mine\n")
    exported(run, project, tmp_path / "venv")
    assert (tmp_path / ".venv-old" / "mine").read_text() == "mine\n"


def test_a_pipe_or_a_folder_is_not_replaced_by_a_bundle(run: RunFolder, project: Project, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(BadInputError, match="no file"):
            exported(run, project, tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()


# the crate ------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path: Path) -> Path:
    """What the validator would fetch: the context of RO-Crate 1.1, as the other RO-Crate library has it."""
    import requests
    import requests_cache
    import rocrate
    from requests.adapters import BaseAdapter

    context = (Path(rocrate.__file__).parent / "data" / "ro-crate.jsonld").read_bytes()

    class Stored(BaseAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
            from urllib3 import HTTPResponse

            raw = HTTPResponse(io.BytesIO(context), status=200, preload_content=False, request_url=request.url)
            answer = requests.adapters.HTTPAdapter().build_response(request, raw)
            answer.headers["Content-Type"] = "application/ld+json"
            return answer

        def close(self) -> None:
            pass

    cache = tmp_path / "http-cache"
    with requests_cache.CachedSession(str(cache)) as session:
        session.mount("https://", Stored())
        session.get("https://w3id.org/ro/crate/1.1/context", headers={"Accept": "application/ld+json"})
    return cache


@pytest.mark.parametrize("unpacked", [False, True], ids=["file", "folder"])
def test_a_validator_takes_it_for_a_process_run_crate(
    bundle: Path, tmp_path: Path, offline: Path, unpacked: bool
) -> None:
    from rocrate_validator import models, services

    crate = unzipped(bundle, tmp_path / "unzipped") if unpacked else bundle
    result = services.validate(
        services.ValidationSettings(
            rocrate_uri=str(crate),
            profile_identifier="process-run-crate",
            requirement_severity=models.Severity.REQUIRED,
            offline=True,
            cache_path=offline,
        )
    )
    assert [issue.message for issue in result.get_issues(models.Severity.REQUIRED)] == []
    assert result.passed()


def test_another_library_reads_the_crate(bundle: Path, tmp_path: Path, run: RunFolder) -> None:
    from rocrate.rocrate import ROCrate

    crate = ROCrate(str(unzipped(bundle, tmp_path / "unzipped")))
    action = crate.dereference("#run")
    record = run.read()
    assert action.type == "CreateAction"
    assert action["identifier"] == record.planned.run
    assert action["instrument"]["version"] == record.planned.code.commit
    assert [each["@id"] for each in action["result"]] == [
        "outputs/caf%5Cxe9",
        "outputs/time.txt",
        "outputs/two%20words",
    ]
    assert action["containerImage"]["tag"] == record.planned.image.tag.rpartition(":")[2]
    assert crate.root_dataset["identifier"] == f"sha256:{identity.record_digest(record)}"


# reproduce.sh ---------------------------------------------------------------------------------------------------


def text_of(record: Record, image: dict[str, int] | None = None, code: script.Code | None = None) -> str:
    return script.text(record, code or script.Code(programs=(), links={}), image or {}, ()).decode()


def with_config(record: Record, **changes: Any) -> Record:
    planned = msgspec.structs.replace(record.planned, config={**record.planned.config, **changes})
    return msgspec.structs.replace(record, planned=planned)


def test_the_script_asks_for_secrets_by_their_names(run: RunFolder, tmp_path: Path) -> None:
    record = with_config(run.read(), secrets={"TOKEN": {"env": "FROM_HERE", "to": "env"}})
    (tmp_path / "reproduce.sh").write_text(text_of(record))
    done = subprocess.run(
        ["sh", "reproduce.sh"], cwd=tmp_path, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"}
    )
    assert (done.returncode, "which are not in the bundle: TOKEN" in done.stderr) == (2, True)
    assert "FROM_HERE" not in (tmp_path / "reproduce.sh").read_text()


@pytest.mark.parametrize("shell", [["dash"], ["bash", "--posix"]], ids=lambda shell: shell[0])
@pytest.mark.parametrize("sizes", [{"index.json": 1, "blobs/sha256/" + "a" * 64: 5000}, {"x": 512}])
def test_the_script_writes_the_tar_that_an_engine_reads(
    run: RunFolder, tmp_path: Path, sizes: dict[str, int], shell: list[str]
) -> None:
    dice = random.Random(8)
    for name, size in sizes.items():
        (tmp_path / "image" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "image" / name).write_bytes(dice.randbytes(size))
    functions = text_of(run.read(), sizes).partition("\nlayers_of()")[0]
    (tmp_path / "archive.sh").write_text(f"{functions}\narchive\n")
    made = subprocess.run([*shell, "archive.sh"], cwd=tmp_path, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(made), mode="r:") as archive:
        read = {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
    assert read == {name: (tmp_path / "image" / name).read_bytes() for name in sizes}
    assert len(made) % 512 == 0


@pytest.mark.parametrize("size", [8 << 30, (64 << 30) - 1])
def test_a_layer_may_have_more_than_8_gib(run: RunFolder, tmp_path: Path, size: int) -> None:
    """Its header alone is written here: `cat` of a file that is not there writes nothing."""
    functions = text_of(run.read(), {"x": size}).partition("\nlayers_of()")[0]
    (tmp_path / "archive.sh").write_text(f"{functions}\narchive\n")
    made = subprocess.run(["sh", "archive.sh"], cwd=tmp_path, capture_output=True, check=False).stdout
    assert tarfile.TarInfo.frombuf(made[:512], "utf-8", "strict").size == size


@pytest.mark.parametrize(
    ("given", "option"), [("none", None), ("all", "--gpus all"), ("2", "--gpus 2"), ("GPU-a,GPU-b,GPU-c", "--gpus 3")]
)
def test_gpus_are_asked_for_by_number(run: RunFolder, given: str, option: str | None) -> None:
    record = run.read()
    started = msgspec.structs.replace(record.started, gpus=given)  # type: ignore[type-var]
    lines = [line.strip(" \\") for line in text_of(msgspec.structs.replace(record, started=started)).splitlines()]
    assert [line for line in lines if line.startswith("--gpus")] == ([option] if option else [])


def test_what_a_shell_would_understand_is_quoted(run: RunFolder, tmp_path: Path) -> None:
    record = run.read()
    odd = 'it\'s $HOME `id`\n"two"\\'
    planned = msgspec.structs.replace(record.planned, command=("echo", odd), env={"ODD": odd})
    text = text_of(msgspec.structs.replace(record, planned=planned))
    start = text[text.index("start() {") : text.index("archive() {")]
    (tmp_path / "x.sh").write_text(
        f"engine=printf_all\nimage=IMAGE\nprintf_all() {{ printf '%s\\0' \"$@\"; }}\n{start}\nstart"
    )
    printed = subprocess.run(["sh", "x.sh"], cwd=tmp_path, capture_output=True, check=True).stdout.decode().split("\0")
    assert printed[-4:] == ["IMAGE", "echo", odd, ""]
    assert printed[printed.index("--env") + 1] == f"ODD={odd}"


def test_odd_names_of_outputs_are_found_by_sha256sum(tmp_path: Path) -> None:
    names = ["-", "--check", "$(id)", "new\nline", " x ", "a: OK", "*"]
    for name in names:
        (tmp_path / name).write_text(name)
    listed = script.lists(manifest.of(tmp_path).files)[script.RESULTS]
    done = subprocess.run(
        ["sha256sum", "-c"], input=listed, cwd=tmp_path, capture_output=True, check=False, env={"LC_ALL": "C"}
    )
    assert (done.returncode, len(done.stdout.splitlines())) == (0, len(names)), done.stdout + done.stderr


def test_a_run_that_left_nothing_to_compare_is_not_called_reproduced(run: RunFolder, tmp_path: Path) -> None:
    record = run.read()
    ended = msgspec.structs.replace(record.ended, exit_code=None, end=End.LOST, outputs=())  # type: ignore[type-var]
    (tmp_path / "reproduce.sh").write_text(text_of(msgspec.structs.replace(record, ended=ended)))
    done = subprocess.run(
        ["sh", "reproduce.sh"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "DOCKER": "true"},
    )
    assert (done.returncode, "there is nothing to compare" in done.stderr) == (3, True), done.stderr


@pytest.mark.parametrize("shell", [["dash"], ["bash", "--posix"]], ids=lambda shell: shell[0])
@pytest.mark.parametrize("cut", ["exit 1", "| head -n 1"], ids=["nothing", "a part"])
def test_a_comparison_that_was_not_made_or_not_to_its_end_is_no_success(
    run: RunFolder, tmp_path: Path, shell: list[str], cut: str
) -> None:
    whole = text_of(run.read())
    functions = whole[whole.index("say() {") : whole.index("\ncalled_in=")]
    (tmp_path / "expected").mkdir()
    (tmp_path / "new" / "outputs").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "new" / "outputs" / name).write_text(name)
    listed = script.sums({name: contents.of_bytes(name.encode()).sha256 for name in ("a", "b")})
    (tmp_path / "expected" / "results-sha256.txt").write_bytes(listed)
    begin = f"here={tmp_path} out={tmp_path}/new differ=0 lines=0\n{functions}\n"
    end = "compared results-sha256.txt ''\necho $lines $differ\n"
    broken = f"sha256sum() {{ {cut}; }}\n" if cut[0] == "e" else f'sha256sum() {{ command sha256sum "$@" {cut}; }}\n'
    for name, text in {"well.sh": begin + end, "broken.sh": begin + broken + end}.items():
        (tmp_path / name).write_text(text)
    well, wrong = (
        subprocess.run([*shell, name], cwd=tmp_path, capture_output=True, text=True, check=False)
        for name in ("well.sh", "broken.sh")
    )
    assert (well.returncode, well.stdout) == (0, "same bytes  a\nsame bytes  b\n2 0\n"), well.stderr
    assert (wrong.returncode, "which shows nothing" in wrong.stderr) == (3, True), wrong.stdout


def test_a_thin_bundle_tells_where_data_is_from_without_the_password_to_it(
    run: RunFolder, project: Project, tmp_path: Path
) -> None:
    record = with_config(
        run.read(), data={"d": {"files": {"x": "a" * 64}, "sources": ["https://me:hidden@example.com/d"]}}
    )
    used = DatasetUsed(name="d", digest="b" * 64, files=(FileUsed(path="x", size=1, sha256="a" * 64),), folder="/d")
    run.write(msgspec.structs.replace(record, planned=msgspec.structs.replace(record.planned, data=(used,))))
    with zipfile.ZipFile(exported(run, project, tmp_path / "x.zip")) as archive:
        told = archive.read("fetch.txt").decode()
    assert "\thttps://example.com/d/x\n" in told


def test_a_file_name_that_no_zip_can_hold_is_told(run: RunFolder, project: Project, tmp_path: Path) -> None:
    (project.root / "caf\udce9").write_text("latin-1\n")
    made = commit(project.root)
    record = run.read()
    code = msgspec.structs.replace(record.planned.code, commit=made)
    run.write(msgspec.structs.replace(record, planned=msgspec.structs.replace(record.planned, code=code)))
    with pytest.raises(BadInputError, match=r"caf\\xe9 cannot be in a bundle"):
        exported(run, project, tmp_path / "x.zip")
