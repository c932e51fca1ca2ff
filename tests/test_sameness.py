"""Two images as archives, made here in memory: which files differ, in what, and the usual cause of it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.errors import EnvironmentUnfitError
from repro.images import causes, sameness
from repro.images.sameness import Layer

Tree = dict[str, tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]]
Form = Callable[[Sequence[bytes]], bytes]


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime = len(content), 1
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry, content


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry, content in members:
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def config(layers: Sequence[bytes]) -> bytes:
    history = [{"created_by": f"RUN step {number}"} for number, _ in enumerate(layers, 1)]
    diff_ids = [f"sha256:{sha256(layer)}" for layer in layers]
    history.insert(1, {"created_by": "ENV A=1", "empty_layer": True})  # type: ignore[dict-item]
    return json.dumps({"history": history, "rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()


def legacy(layers: Sequence[bytes]) -> bytes:
    """As engines up to 24 write it: one folder a layer; a layer that comes twice is a link."""
    members, names, seen = [], [], {}
    for number, layer in enumerate(layers):
        name = f"{number}{'0' * 63}/layer.tar"
        members.append(member(f"{number}{'0' * 63}/VERSION", b"1.0"))
        members.append(member(f"{number}{'0' * 63}/json", b"{}"))
        if layer in seen:
            members.append(member(name, type=tarfile.SYMTYPE, linkname=f"../{seen[layer]}"))
        else:
            members.append(member(name, layer))
        seen.setdefault(layer, name)
        names.append(name)
    written = config(layers)
    manifest = [{"Config": f"{sha256(written)}.json", "RepoTags": None, "Layers": names}]
    members += [member(manifest[0]["Config"], written), member("manifest.json", json.dumps(manifest).encode())]
    return tar(*members)


def oci(layers: Sequence[bytes], compress: Callable[[bytes], bytes] = bytes) -> bytes:
    """As later ones write it: blobs by their sha256, some stores' compressed."""
    blobs = {f"blobs/sha256/{sha256(compress(layer))}": compress(layer) for layer in layers}
    written = config(layers)
    name = f"blobs/sha256/{sha256(written)}"
    names = [f"blobs/sha256/{sha256(compress(layer))}" for layer in layers]
    manifest = json.dumps([{"Config": name, "RepoTags": ["a:1"], "Layers": names}]).encode()
    files = {**blobs, name: written, "oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "manifest.json": manifest}
    return tar(*(member(*file) for file in sorted(files.items())))


def zipped(layer: bytes) -> bytes:
    return gzip.compress(layer, mtime=0)


FORMS: dict[str, Form] = {"legacy": legacy, "oci": oci, "compressed": lambda layers: oci(layers, zipped)}


def pieces(archive: bytes) -> Iterator[bytes]:
    """As the engine sends it."""
    yield from (archive[begin : begin + 1000] for begin in range(0, len(archive), 1000))


def read(form: Form, *layers: bytes) -> tuple[Layer, ...]:
    return sameness.read(pieces(form(layers)))


def only(one: tuple[tarfile.TarInfo, bytes], other: tuple[tarfile.TarInfo, bytes]) -> sameness.Difference:
    """The one difference of two layers with one member each."""
    (layer,) = sameness.compare(read(legacy, tar(one)), read(legacy, tar(other)))
    (difference,) = layer.differences
    return difference


# reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_archive_is_read_with_all_that_a_layer_holds(form: Form) -> None:
    layer = tar(
        member("opt/", type=tarfile.DIRTYPE, mode=0o1755, uid=3, gid=4, mtime=9),
        member("./opt/file", b"hello", mode=0o640),
        member("opt/link", type=tarfile.SYMTYPE, linkname="file"),
        member("opt/twice", type=tarfile.LNKTYPE, linkname="opt/file"),
        member("opt/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("opt/cap", b"", pax_headers={"SCHILY.xattr.security.capability": "x"}),
    )
    (base, found) = read(form, tar(), layer)
    assert (base.diff_id, base.entries) == (f"sha256:{sha256(tar())}", {})
    assert (found.diff_id, found.made_by) == (f"sha256:{sha256(layer)}", "RUN step 2")
    assert list(found.entries) == ["opt", "opt/file", "opt/link", "opt/twice", "opt/null", "opt/cap"]
    folder, file, link, twice, null, cap = found.entries.values()
    assert (folder.kind, folder.mode, folder.owner, folder.time) == ("folder", "1755", "3:4", 9.0)
    assert (file.kind, file.mode, file.size, file.content) == ("file", "640", 5, sha256(b"hello"))
    assert (link.kind, link.link, twice.kind, twice.link) == ("symbolic link", "file", "hard link", "opt/file")
    assert (null.kind, null.link) == ("character device", "1:3")
    assert cap.xattrs == {"security.capability": "x"}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_layer_that_an_image_has_twice_is_read_both_times(form: Form) -> None:
    layer = tar(member("a", b"1"))
    first, second = read(form, layer, layer)
    assert first.entries == second.entries != {}


def test_what_is_known_to_be_equal_is_not_read() -> None:
    """The base is most of an image."""
    layers = [tar(member("a")), tar(member("b"))]
    base, _ = (f"sha256:{sha256(layer)}" for layer in layers)
    assert [[*layer.entries] for layer in sameness.read([oci(layers)], {base})] == [[], ["b"]]


@pytest.mark.parametrize(
    "archive",
    [b"", b"no tar at all" * 100, tar(), tar(member("manifest.json", b"[]")), tar(member("manifest.json", b"[{"))],
    ids=["empty", "noise", "no manifest", "no image", "torn"],
)
def test_what_is_no_image_is_an_error_of_ours(archive: bytes) -> None:
    with pytest.raises(EnvironmentUnfitError, match="cannot be read"):
        sameness.read(pieces(archive))


def test_a_layer_in_a_compression_that_is_not_known_is_told_if_its_files_are_needed() -> None:
    layers = [tar(member("a")), tar(member("b"))]
    archive = oci(layers, lambda layer: b"\x28\xb5\x2f\xfd" + layer)
    with pytest.raises(EnvironmentUnfitError, match=r"layer 1 .* cannot be read"):
        sameness.read([archive])
    assert sameness.read([archive], {f"sha256:{sha256(layer)}" for layer in layers})


# comparing --------------------------------------------------------------------------------------------------------

NAMES = st.text("abc", min_size=1, max_size=3)
FILES = st.dictionaries(NAMES, st.tuples(st.binary(max_size=20), st.integers(0, 9), st.sampled_from([0o644, 0o755])))


def layer_of(files: dict[str, tuple[bytes, int, int]]) -> bytes:
    return tar(*(member(name, content, mtime=time, mode=mode) for name, (content, time, mode) in files.items()))


@given(FILES, FILES)
def test_what_differs_is_found_and_nothing_else(
    one: dict[str, tuple[bytes, int, int]], other: dict[str, object]
) -> None:
    found = sameness.compare(read(oci, layer_of(one)), read(oci, layer_of(other)))  # type: ignore[arg-type]
    paths = [difference.path for layer in found for difference in layer.differences]
    assert paths == sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    assert bool(found) == ([*one.items()] != [*other.items()])  # the order of a tar is part of its bytes, too


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"mtime": 5}, {"time": (1.0, 5.0)}),
        ({"mode": 0o4755}, {"mode": ("644", "4755")}),
        ({"uid": 1000, "gid": 7}, {"owner": ("0:0", "1000:7")}),
        ({"type": tarfile.SYMTYPE}, {"kind": ("file", "symbolic link")}),
        ({"pax_headers": {"SCHILY.xattr.user.a": "b"}}, {"xattrs": ({}, {"user.a": "b"})}),
    ],
)
def test_each_property_of_a_file_is_told_with_both_values(fields: dict[str, object], what: dict[str, object]) -> None:
    assert only(member("f"), member("f", **fields)).what == what


def test_contents_are_told_with_their_size() -> None:
    found = only(member("f", b"a"), member("f", b"bc"))
    assert found.what == {"content": (sha256(b"a"), sha256(b"bc")), "size": (1, 2)}


def test_the_target_of_a_link_is_told() -> None:
    link = {"type": tarfile.SYMTYPE}
    assert only(member("l", linkname="a", **link), member("l", linkname="b", **link)).what == {"link": ("a", "b")}


def test_layers_are_held_against_each_other_by_their_place() -> None:
    same, one, other = tar(member("same")), tar(member("x", b"1")), tar(member("x", b"2"), member("y"))
    (found,) = sameness.compare(read(legacy, same, one, same), read(legacy, same, other, same))
    assert (found.number, found.made_by, found.paths) == (2, "RUN step 2", 1)
    assert [(each.path, [*each.what]) for each in found.differences] == [("x", ["content"]), ("y", ["there"])]
    assert found.differences[1].what == {"there": (False, True)}


def test_a_layer_that_only_one_image_has_is_all_different() -> None:
    same, more = tar(member("same")), tar(member("x"))
    (found,) = sameness.compare(read(legacy, same), read(legacy, same, more))
    assert (found.number, found.diff_ids, found.paths) == (2, ("", f"sha256:{sha256(more)}"), 0)
    assert [each.what for each in found.differences] == [{"there": (False, True)}]


# causes -----------------------------------------------------------------------------------------------------------

PYC = b"\xa7\r\r\n" + b"\0\0\0\0" + b"%b" + b"\5\0\0\0" + b"the code"


def test_bytecode_with_the_time_of_its_source_is_told_from_other_bytecode() -> None:
    time = only(member("a/m.pyc", PYC % b"1111"), member("a/m.pyc", PYC % b"2222"))
    other = only(member("a/m.pyc", PYC % b"1111"), member("a/m.pyc", PYC % b"1111" + b"!"))
    assert "time of its source" in time.cause
    assert "unchecked-hash" in time.remedy
    assert "compiled before" in other.cause
    assert "without -j" in other.remedy


def test_a_gzip_header_is_told_from_other_contents() -> None:
    one, other = gzip.compress(b"a", mtime=1), gzip.compress(b"a", mtime=2)
    assert "gzip header" in only(member("usr/x", one), member("usr/x", other)).cause
    assert "gzip header" not in only(member("usr/x", one), member("usr/x", gzip.compress(b"b", mtime=1))).cause


@pytest.mark.parametrize(
    ("path", "what", "said"),
    [
        ("opt/venv/lib/python3.11/site-packages/x-1.dist-info/RECORD", "content", "what pip notes"),
        ("opt/venv/lib/python3.11/site-packages/x-1.dist-info/direct_url.json", "there", "what pip notes"),
        ("var/cache/ldconfig/aux-cache", "content", "ldconfig"),
        ("var/lib/apt/lists/deb.debian.org_InRelease", "there", "apt's lists"),
        ("var/lib/apt/lists", "time", "apt's lists"),
        ("var/lib/apt/lists/.wh.lock", "time", "a removed file"),
        ("var/log/dpkg.log", "content", "a log"),
        ("var/cache/debconf/config.dat-old", "there", "a backup"),
        ("var/lib/dpkg/status-old", "content", "a backup"),
        ("etc/passwd-", "time", "a backup"),
        ("etc/shadow", "content", "accounts"),
        ("etc/machine-id", "content", "at random"),
        ("etc/ssh/ssh_host_ed25519_key", "content", "at random"),
        ("etc/resolv.conf", "content", "network settings"),
        ("root/.wget-hsts", "there", "traces"),
        ("root/.cache/pip/x", "there", "traces"),
        ("tmp/pip-abc/x", "there", "left over"),
        ("usr/share/x.zip", "content", "an archive"),
        ("opt/venv/lib/python3.11/site-packages/x.cpython-311-x86_64-linux-gnu.so", "content", "compiled in the build"),
        ("usr/lib/libx.so.1.2", "content", "compiled in the build"),
        ("usr/lib/libx.so.1.2", "time", "the time of the build"),
        ("usr/bin/x", "mode", "mode or owner"),
        ("usr/bin/x", "there", "in one of the builds only"),
        ("usr/bin/x", "content", "depends on time"),
        ("a/__pycache__/m.cpython-311.pyc", "there", "bytecode"),
        ("a/__pycache__/m.cpython-311.pyc", "time", "the time of the build"),
        ("etc", "time", "the time of the build"),
    ],
)
def test_the_usual_causes(path: str, what: str, said: str) -> None:
    cause = causes.of(path, frozenset({what}))
    assert said in cause.text
    assert cause.remedy


@pytest.mark.parametrize("made_by", ["COPY /out/a /opt/a # buildkit", "/bin/sh -c #(nop) COPY file:1 in /opt/a"])
def test_a_time_that_copy_gave_has_another_remedy(made_by: str) -> None:
    assert "COPY --from=STAGE /out/ /" in causes.of("opt", frozenset({"time"}), made_by=made_by).remedy


def test_a_folder_that_old_buildkits_touch_is_told() -> None:
    cause = causes.of("etc", frozenset({"time"}), made_by="RUN /bin/sh -c true # buildkit")
    assert "BuildKit of engines before 23" in cause.text
    assert "no RUN in the last stage" in cause.remedy
