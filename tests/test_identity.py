"""The names of a run: what changes them and what does not, for every field that there is; and one canonical form."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from repro import identity, report, results
from repro.experiment import Experiment, Outputs, Resources, RunSecret
from repro.record import (
    Canonical,
    Code,
    DatasetUsed,
    End,
    Ended,
    FileUsed,
    Fingerprint,
    ImageUsed,
    OutputFile,
    Peaks,
    Planned,
    Record,
    RunFolder,
    Series,
    Started,
)
from repro.tracking import view
from tests.test_plan import decided

NOW = datetime(2026, 11, 24, tzinfo=timezone.utc)
PLANNED = msgspec.structs.replace(
    decided().planned, image=msgspec.structs.replace(decided().planned.image, content="sha256:" + "7" * 64)
)
KEY = identity.run_key(PLANNED)
FILES = (
    OutputFile(path="a", size=1, sha256="1" * 64),
    OutputFile(path="b", size=1, sha256="2" * 64, canonical=Canonical(stabilizer="x@1", sha256="3" * 64)),
    OutputFile(path="log", size=1, sha256="4" * 64, role="by-product"),
)
METRICS = (
    Series(name="loss", count=2, last="0x1p-1", sha256="5" * 64),
    Series(name="seconds", count=2, last="0x1p-1", sha256="6" * 64, role="by-product"),
)
ENDED = Ended(at=NOW, end=End.FINISHED, exit_code=0, reason="exit code 0", outputs=FILES, metrics=METRICS)

# field -> another value; by what it belongs to. Every field stands in exactly one of the two.
DECIDES: dict[str, dict[str, Any]] = {
    "planned": {
        "command": ("sh", "other.sh"),
        "data": (DatasetUsed(name="mnist", digest="e", files=(), folder="/cache/mnist-d"),),
        "env": {**PLANNED.env, "OMP_NUM_THREADS": "3"},
        "gpus_asked": "2",
        "network": "bridge",
        "code_prefix": "sub/",
        "helper": "another",
    },
    "code": {"tree": "u" * 40},
    "image": {"platform": "linux/arm64", "content": "sha256:8", "settings": "9"},
    "config": {"name": "other", "params": {"lr": 1}, "seed": 8, "deterministic": False, "user": "root"},
    "resources": {"cpus": 1.5, "memory": 1 << 30, "shm": 5, "tmp": 6, "pids": 7},
    "outputs": {"ignore": ("*.tmp",), "by_products": ("*.log",), "by_product_metrics": ("*_seconds",)},
}
TELLS: dict[str, dict[str, Any]] = {
    "planned": {
        "schema": 2,
        "run": "20261124-000000-toy-000000",
        "name": "other",  # what counts is the configuration's, which an experiment can read
        "created": NOW,
        "repro": "99",
        "project": "/elsewhere",
        "argv": ("x",),
        "overrides": ("x",),
        "host": msgspec.structs.replace(PLANNED.host, name="other", cpus=1),
        "user": "0:0",
        "tracking_uri": None,
        "tracking_experiment": "other",
        "notices": ("floating",),
        "run_key": "x",
        "reproduces": "another",
        "repeats": "another",
    },
    "code": {"commit": "d" * 40, "head": "d" * 40, "branch": None, "remote": "https://x/y", "dirty": False},
    "image": {
        "variant": "w",
        "tag": "my-tf:fedcba9876543210",
        "id": "sha256:5",
        "spec": "5" * 64,
        "base": "b:2",
        "base_resolved": "sha256:4",
        "digest": "x@sha256:1",
        "floating": ("base",),
        "manifest": "sha256:1",
        "config": "sha256:1",
        "layers": ("sha256:1",),
        "drift": "another",
    },
    "config": {  # the rest of these is above, in a truer form
        "command": ["x"],
        "threads": 8,
        "gpus": "none",
        "network": "bridge",
        "env": {"A": "B"},
        "image": {},
        "build": {},
        "data": {"mnist": {"files": {}, "sources": ["/elsewhere"]}},
        "tracking": {},
        "description": "why",
    },
    "resources": {"time_limit": 60.0, "stop_signal": "SIGTERM", "stop_grace": 1.0},
    "outputs": {"limit": 1 << 30},
}
OF_THEIR_OWN = {"planned": {"code", "image", "config"}, "config": {"secrets", "resources", "outputs"}}
KINDS = {
    "planned": Planned,
    "code": Code,
    "image": ImageUsed,
    "config": Experiment,
    "resources": Resources,
    "outputs": Outputs,
}


def changed(part: str, field: str, value: Any) -> Planned:
    if part == "planned":
        return msgspec.structs.replace(PLANNED, **{field: value})
    if part in ("code", "image"):
        return msgspec.structs.replace(
            PLANNED, **{part: msgspec.structs.replace(getattr(PLANNED, part), **{field: value})}
        )
    config = json.loads(json.dumps(PLANNED.config))
    (config if part == "config" else config[part])[field] = value
    return msgspec.structs.replace(PLANNED, config=config)


def rows(table: dict[str, dict[str, Any]]) -> pytest.MarkDecorator:
    found = [(part, field, value) for part, fields in table.items() for field, value in fields.items()]
    return pytest.mark.parametrize(
        ("part", "field", "value"), found, ids=[f"{part}.{field}" for part, field, _ in found]
    )


@rows(DECIDES)
def test_what_can_decide_a_result_changes_the_run_key(part: str, field: str, value: Any) -> None:
    assert identity.run_key(changed(part, field, value)) != KEY


@rows(TELLS)
def test_what_tells_of_time_place_and_names_does_not(part: str, field: str, value: Any) -> None:
    assert changed(part, field, value) != PLANNED
    assert identity.run_key(changed(part, field, value)) == KEY


@pytest.mark.parametrize("part", KINDS)
def test_of_every_field_it_is_decided_whether_it_is_in_the_run_key(part: str) -> None:
    said = [*DECIDES[part], *TELLS[part], *OF_THEIR_OWN.get(part, ())]
    assert sorted(said) == sorted(field.name for field in msgspec.structs.fields(KINDS[part]))


def test_secrets_are_in_the_run_key_by_name_and_not_by_where_they_come_from() -> None:
    def key(**secrets: RunSecret) -> str:
        return identity.run_key(
            changed("config", "secrets", {name: msgspec.to_builtins(each) for name, each in secrets.items()})
        )

    assert key(A=RunSecret(env="X")) == key(A=RunSecret(file="y"))
    assert len({KEY, key(A=RunSecret(env="X")), key(B=RunSecret(env="X")), key(A=RunSecret(env="X", to="env"))}) == 4


def test_the_id_of_the_run_in_its_environment_decides_nothing_and_a_run_without_an_image_has_no_key() -> None:
    assert identity.run_key(changed("planned", "env", {**PLANNED.env, "REPRO_RUN": "another"})) == KEY
    unknown = msgspec.structs.replace(PLANNED.image, id="", content="")
    assert identity.run_key(msgspec.structs.replace(PLANNED, image=unknown)) == ""


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (0, False), (1.0, "1.0"), (2**53, 2**53 + 1), (2**53, str(2**53)), (None, "null"), (0.0, -0.0)],
)
def test_parameters_that_a_program_tells_apart_have_run_keys_apart(one: Any, other: Any) -> None:
    keys = {identity.run_key(changed("config", "params", {"x": [each]})) for each in (one, other)}
    assert len(keys) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"exit_code": 1},
        {"outputs": FILES[1:]},
        {"outputs": (msgspec.structs.replace(FILES[0], sha256="0" * 64), *FILES[1:])},
        {"outputs": (msgspec.structs.replace(FILES[0], path="A"), *FILES[1:])},
        {"outputs": (msgspec.structs.replace(FILES[0], role="by-product"), *FILES[1:])},
        {"outputs": (FILES[0], msgspec.structs.replace(FILES[1], canonical=None))},
        {"outputs": (FILES[0], msgspec.structs.replace(FILES[1], canonical=Canonical(stabilizer="x@1", sha256="0")))},
        {"metrics": ()},
        {"metrics": (msgspec.structs.replace(METRICS[0], sha256="0" * 64),)},
    ],
    ids=str,
)
def test_what_came_out_changes_the_result(changes: dict[str, Any]) -> None:
    assert identity.result(msgspec.structs.replace(ENDED, **changes)) != identity.result(ENDED)


@pytest.mark.parametrize(
    "changes",
    [
        {"at": PLANNED.created},
        {"end": End.FAILED, "reason": "another"},
        {"outputs": FILES[:2]},
        {"outputs": FILES[::-1]},
        {"outputs": (FILES[0], msgspec.structs.replace(FILES[1], sha256="0" * 64))},  # its meaning is the same
        {"metrics": METRICS[:1]},
        {"trace": (Fingerprint(at="init", digests={}, values={}),)},
        {"result": "x", "ignored": 3, "peaks": Peaks(memory=1)},
    ],
    ids=str,
)
def test_by_products_and_circumstances_do_not(changes: dict[str, Any]) -> None:
    assert identity.result(msgspec.structs.replace(ENDED, **changes)) == identity.result(ENDED)


EVENTS = "logs/events.out.tfevents."


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (["1700000000.host.1.0.v2"], ["1800000000.other.77.0.v2"], True),
        (["1.a.1.0.v2", "2.a.1.1.v2"], ["9.b.3.1.v2", "8.b.3.0.v2"], False),  # the second is first there
        (["1.a.1.0.v2", "2.a.1.1.v2"], ["8.b.3.0.v2", "9.b.3.1.v2"], True),
        (["1.a.1.0.v2"], ["1.a.1.0"], False),  # of another version
    ],
)
def test_the_time_and_host_in_names_of_event_files_are_no_result(one: list[str], other: list[str], same: bool) -> None:
    found = [
        identity.result(
            msgspec.structs.replace(
                ENDED, outputs=tuple(msgspec.structs.replace(FILES[n], path=EVENTS + p) for n, p in enumerate(paths))
            )
        )
        for paths in (one, other)
    ]
    assert (found[0] == found[1]) is same


@pytest.mark.parametrize(("role", "known"), [("result", False), ("by-product", True)])
def test_a_file_that_nobody_had_time_to_read_leaves_the_result_open(role: Any, known: bool) -> None:
    file = msgspec.structs.replace(FILES[1], canonical=None, unsettled=True, role=role)
    assert bool(identity.result(msgspec.structs.replace(ENDED, outputs=(FILES[0], file)))) is known


def test_what_a_record_leaves_open_nobody_says_in_its_place() -> None:
    for key, found in ((KEY, ""), ("", identity.result(ENDED))):  # a record without a key is older than results
        kept = Record(planned=msgspec.structs.replace(PLANNED, run_key=key), ended=ENDED)
        assert identity.result_of(kept) == found


def test_event_files_whose_names_hold_the_time_have_one_result() -> None:
    """Else every run with TensorBoard would prove that it is not deterministic."""
    same = Canonical(stabilizer="tfevents@1", sha256="3" * 64)
    results = set()
    for made, process in ((1700000000, 7), (1800000000, 8)):
        names = [f"tb/events.out.tfevents.{made + later}.host.{process}.{later}.v2" for later in (0, 1)]
        files = [OutputFile(path=name, size=1, sha256=str(process) * 64, canonical=same) for name in names]
        results.add(identity.result(msgspec.structs.replace(ENDED, outputs=tuple(files))))
        results.add(identity.result(msgspec.structs.replace(ENDED, outputs=tuple(files[::-1]))))
    assert len(results) == 1
    assert results != {identity.result(msgspec.structs.replace(ENDED, outputs=tuple(files[:1])))}


def test_a_record_is_named_by_all_of_it() -> None:
    record = Record(planned=PLANNED, started=Started(at=NOW, container="c", gpus="none"), ended=ENDED)
    later = msgspec.structs.replace(record, ended=msgspec.structs.replace(ENDED, reason="another"))
    assert identity.record_digest(record) != identity.record_digest(later)
    read = msgspec.json.decode(msgspec.json.encode(record), type=Record)
    assert identity.record_digest(read) == identity.record_digest(record)
    written = identity.canonical(record)
    assert (msgspec.json.decode(written, type=Record), hashlib.sha256(written).hexdigest()) == (
        record,
        identity.record_digest(record),
    )


def test_a_member_that_a_later_version_adds_does_not_rename_old_records() -> None:
    """It has a default, which old records are read with."""
    assert identity.canonical(FILES[0]) == b'{"path":"a","sha256":"%s","size":1}' % (b"1" * 64)
    assert identity.canonical(FileUsed(path="a", size=1, sha256="1" * 64)) == identity.canonical(FILES[0])


def test_a_record_from_before_there_were_names_is_read_and_will_always_have_the_same_one(tmp_path: Path) -> None:
    """The file was written by a version that knew nothing of results, metrics, traces and processors."""
    old = Path(__file__).parent / "records" / "before-identities.json"
    folder = RunFolder(tmp_path)
    shutil.copy(old, folder.record)
    record = folder.read()
    assert record.ended is not None
    assert (record.planned.run_key, record.ended.result, record.planned.host.cpu) == ("", "", "")
    assert identity.record_digest(record) == "879027c5d1166ffc225db60dbbfd733a8f102138a4160153d7bc82480563a579"
    assert identity.run_key(record.planned)  # it can be computed all the same
    assert (results.of([folder, folder]), "run key" in report.identities(record, {})) == ({}, False)
    assert "record" in view.tags(record)
    assert "result" not in view.tags(record)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"])).filter(lambda k: not k.startswith("$")), inner
        )
    ),
)


@given(JSON)
def test_the_form_of_what_json_can_hold_is_rfc_8785_and_survives_being_read(value: Any) -> None:
    assert identity.canonical(value) == rfc8785.dumps(value)
    assert identity.canonical(json.loads(json.dumps(value))) == identity.canonical(value)


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (2**53, '{"$integer":"9007199254740992"}'),
        (-(2**70), '{"$integer":"-1180591620717411303424"}'),
        (math.nan, '{"$float":"nan"}'),
        (-math.inf, '{"$float":"-inf"}'),
        ({"$integer": "9007199254740992"}, '{"$$integer":"9007199254740992"}'),
        (End.OOM, '"oom"'),
        (NOW, '"2026-11-24T00:00:00Z"'),
    ],
    ids=str,
)
def test_what_json_has_no_form_for_is_told_apart_from_all_that_it_has_one_for(value: Any, form: str) -> None:
    assert identity.canonical(value).decode() == form
