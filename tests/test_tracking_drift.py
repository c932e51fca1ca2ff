"""The same image spec with other content, noticed between runs of a tracking store, whatever machine they ran on."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from repro.project import Project
from repro.tracking import publication
from repro.tracking.publisher import connect
from repro.tracking.tracking import Follower
from tests.test_tracking import Run, client, follower, free_port, project, server, sync, the, until  # noqa: F401

pytestmark = pytest.mark.tracking

ONE, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.fixture(params=["sqlite", "http"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store as a file, and behind a server."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/shared.db"
        return
    port = free_port()
    with server(port, tmp_path):
        answers = client(f"http://localhost:{port}")

        def up() -> bool:
            with contextlib.suppress(Exception):
                return bool(answers.search_experiments())
            return False

        until(up, 60)
        yield f"http://localhost:{port}"


def ran(project: Project, number: int, uri: str, **image: object) -> Run:  # noqa: F811
    """A run that is over, with an image of this kind."""
    run = Run(project, f"20260102-030405-toy-{number:06}", uri=uri)
    planned = run.record.planned
    planned = msgspec.structs.replace(planned, image=msgspec.structs.replace(planned.image, **image))
    run.record = msgspec.structs.replace(run.record, planned=planned)
    run.end()
    return run


def test_another_content_in_the_same_store_is_a_tag_and_a_remark(
    project: Project,  # noqa: F811
    follower: Follower,  # noqa: F811
    uri: str,
) -> None:
    first, same = ran(project, 1, uri, content=ONE), ran(project, 2, uri, content=ONE)
    other = ran(project, 3, uri, content=OTHER, id="sha256:" + "9" * 64)
    for run in (first, same):
        reply = sync(follower, run)
        assert (reply.ok, reply.remarks) == (True, ())
        assert "drift" not in the(run).data.tags
    reply = sync(follower, other)
    (remark,) = reply.remarks
    assert re.match(f"drift: the same image spec had other content in run ({first.id}|{same.id}): ", remark)
    for word in (ONE, OTHER, "sha256:" + "9" * 64):
        assert word in remark
    assert the(other).data.tags["drift"] in remark
    assert "drift" not in the(first).data.tags
    assert sync(follower, other).remarks == reply.remarks  # once looked for, and never lost


def test_a_run_of_another_experiment_counts_and_one_of_another_spec_does_not(
    project: Project,  # noqa: F811
    follower: Follower,  # noqa: F811
    tmp_path: Path,
) -> None:
    uri = f"sqlite:///{tmp_path}/shared.db"
    for run in (ran(project, 1, uri, content=ONE), ran(project, 2, uri, content=ONE, spec="7" * 64)):
        assert sync(follower, run).ok
    other = Run(project, "20260102-030405-toy-000009", uri=uri)
    planned = other.record.planned
    image = msgspec.structs.replace(planned.image, content=OTHER, spec="7" * 64)
    planned = msgspec.structs.replace(planned, image=image, tracking_experiment="elsewhere")
    other.record = msgspec.structs.replace(other.record, planned=planned)
    other.end()
    (remark,) = sync(follower, other).remarks
    assert "20260102-030405-toy-000002" in remark


@pytest.mark.parametrize("image", [{"content": ""}, {"content": OTHER, "drift": "this machine knows better"}])
def test_what_has_no_content_or_was_told_already_is_not_looked_for(
    project: Project,  # noqa: F811
    follower: Follower,  # noqa: F811
    image: dict[str, str],
) -> None:
    store_uri = Run(project, "20260102-030405-toy-unused").uri
    assert sync(follower, ran(project, 1, store_uri, content=ONE)).ok
    run = ran(project, 2, store_uri, **image)
    assert sync(follower, run).remarks == ()
    assert the(run).data.tags.get("drift") == image.get("drift")


def test_a_store_that_gives_no_answer_costs_nothing_but_the_answer(
    project: Project,  # noqa: F811
) -> None:
    run = ran(project, 1, f"http://localhost:{free_port()}", content=ONE)
    published = publication.Publication(run.folder, run.uri, connect(run.uri))
    published._compare(run.record)
    assert (published.state.compared, published.state.remarks) == (True, ())
