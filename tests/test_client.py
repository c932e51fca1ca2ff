"""What MLflow is asked and how it answers: the same by our own client for servers and by MLflow's for databases."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from repro.tracking import store
from repro.tracking.client import (
    BYTES,
    TrackedRun,
    TrackingClient,
    TrackingError,
    UnreachableError,
    batches,
    every_artifact,
)
from repro.tracking.journal import Metric, Note
from repro.tracking.publisher import connect
from repro.tracking.restclient import RestClient, speaks
from repro.tracking.view import Dataset
from tests.tracking_servers import Door, free_port

tracked = pytest.mark.tracking
STARTED, ENDED = 1_700_000_000_000, 1_700_000_009_000


@pytest.fixture(params=["sqlite", "http"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> TrackingClient:
    if request.param == "http":
        return connect(f"http://localhost:{request.getfixturevalue('database')}")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    store.prepare(uri)
    return connect(uri)


@pytest.fixture
def run(client: TrackingClient, request: pytest.FixtureRequest) -> TrackedRun:
    experiment = client.create_experiment(f"toys {request.node.name}", None, {"kind": "toy"})
    return client.create_run(experiment, name="a run", started=STARTED, tags={"run": "r1", "mlflow.user": "me"})


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.close()


@tracked
def test_a_run_is_found_as_it_was_made(client: TrackingClient, run: TrackedRun) -> None:
    assert (run.active, run.status, run.started, run.ended) == (True, "RUNNING", STARTED, None)
    assert run.tags.items() >= {"run": "r1", "mlflow.user": "me"}.items()
    assert client.run(run.id) == run
    assert client.run("0" * 32) is None
    assert client.find_runs([run.experiment_id], "tags.`run` = 'r1'", limit=1) == [run]
    assert client.find_runs([run.experiment_id], "tags.`run` = 'r2'", limit=1) == []
    client.terminate(run.id, "KILLED", ENDED)
    ended = client.run(run.id)
    assert ended
    assert (ended.status, ended.ended) == ("KILLED", ENDED)
    client.delete_run(run.id)
    assert client.find_runs([run.experiment_id], "tags.`run` = 'r1'", limit=1) == []
    (deleted,) = client.find_runs([run.experiment_id], "tags.`run` = 'r1'", limit=1, deleted=True)
    assert not deleted.active


@tracked
def test_an_experiment_is_made_once(client: TrackingClient) -> None:
    assert client.experiment("none & such") is None
    made = client.create_experiment("none & such", None, {})
    found = client.experiment("none & such")
    assert found
    assert (found.id, found.active) == (made, True)
    assert made in [each.id for each in client.experiments(50)]
    client.tag_experiment(made, "key", "välue")
    with pytest.raises(TrackingError) as caught:
        client.create_experiment("none & such", None, {})
    assert caught.value.code == "RESOURCE_ALREADY_EXISTS"
    assert not caught.value.rejected


@tracked
def test_any_number_of_anything_is_logged(client: TrackingClient, run: TrackedRun) -> None:
    points = [Metric(key="löss/a b", value=1 / (step + 1), timestamp=step, step=step) for step in range(2500)]
    special = [math.nan, math.inf, -math.inf]
    points += [Metric(key="odd", value=value, timestamp=5, step=step) for step, value in enumerate(special)]
    client.log(run.id, metrics=points)
    params = [Note(key=f"p{number}", value="€" * 6000) for number in range(250)]  # 4.5 MB as UTF-8
    client.log(run.id, params=params, tags=[Note(key=f"t{number}", value="v" * 5000) for number in range(250)])
    there = client.run(run.id)
    assert there
    assert there.params == {note.key: note.value for note in params}
    assert len([key for key in there.tags if key.startswith("t")]) == 250
    assert sorted(client.history(run.id, "löss/a b"), key=lambda point: point.step) == points[:2500]
    odd = [point.value for point in sorted(client.history(run.id, "odd"), key=lambda point: point.step)]
    assert math.isnan(odd[0])
    assert odd[1:] == [sys.float_info.max, -sys.float_info.max]
    assert list(client.history(run.id, "none")) == []


@tracked
def test_what_is_refused_is_refused_for_good(client: TrackingClient, run: TrackedRun) -> None:
    client.log(run.id, params=[Note(key="p", value="1")])
    for wrong in (
        {"params": [Note(key="p", value="2")]},
        {"metrics": [Metric(key="a@b", value=1, timestamp=1, step=1)]},
    ):
        with pytest.raises(TrackingError) as caught:
            client.log(run.id, **wrong)  # type: ignore[arg-type]
        assert caught.value.rejected


@tracked
def test_a_dataset_is_noted_once(client: TrackingClient, run: TrackedRun) -> None:
    dataset = Dataset(name="mnist", digest="ab", source_type="local", source="{}", profile="{}", context="training")
    for _again in range(2):
        client.log_dataset(run.id, dataset)
    there = client.run(run.id)
    assert there
    assert there.datasets == (("mnist", "ab"),)


@tracked
def test_artifacts_keep_their_names(client: TrackingClient, run: TrackedRun, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 1000)
    (tmp_path / "empty").touch()
    counted: list[int] = []
    names = ["outputs/a b.bin", "outputs/ünder/x+y.bin"]
    for name in names if isinstance(client, RestClient) else names[:1]:
        source = tmp_path / Path(name).name
        shutil.copy(file, source)
        client.upload(run, source, name, counted.append)
    client.upload(run, tmp_path / "empty", "empty", counted.append)
    assert sum(counted) == 256_000 * (2 if isinstance(client, RestClient) else 1)
    there = {entry.path: entry.size for entry in every_artifact(client, run)}
    assert there["outputs/a b.bin"] == 256_000
    assert "empty" in there
    assert not isinstance(client, RestClient) or there["outputs/ünder/x+y.bin"] == 256_000


def test_a_batch_is_one_that_a_server_takes() -> None:
    notes = [Note(key=str(number), value="€" * 6000) for number in range(100)]
    sent = list(batches(notes, 100))
    assert [note for batch in sent for note in batch] == notes
    assert all(sum(len(note.value.encode()) for note in batch) <= BYTES for batch in sent)
    assert [len(batch) for batch in batches([Note(key="k", value="")] * 250, 100)] == [100, 100, 50]
    assert list(batches([], 100)) == []


# servers that are none, or none for us --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "pässword"}, "Basic bWU6cMOkc3N3b3Jk"),
        ({"MLFLOW_TRACKING_TOKEN": "abc"}, "Bearer abc"),
        ({}, None),
    ],
)
def test_who_we_are_is_said_as_mlflow_says_it(door: Door, environ: dict[str, str], said: str | None) -> None:
    door.fault = lambda *_request: 200
    RestClient(door.uri, {**environ, "MLFLOW_WORKSPACE": "team"}).experiments(1)
    ((_method, path, headers),) = door.seen
    assert (path, headers.get("Authorization")) == ("/api/2.0/mlflow/experiments/search", said)
    assert headers["X-MLFLOW-WORKSPACE"] == "team"


def test_the_credentials_of_mlflows_own_file_are_used(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".mlflow").mkdir()
    lines = "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = 100%\n"
    (tmp_path / ".mlflow" / "credentials").write_text(lines)
    door.fault = lambda *_request: 200
    RestClient(door.uri, {}).experiments(1)
    assert door.seen[0][2]["Authorization"] == "Basic bWU6MTAwJQ=="


@pytest.mark.parametrize(
    ("status", "answer", "says", "code"),
    [
        (503, b'{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "later"}', "later", "TEMPORARILY_UNAVAILABLE"),
        (502, b"<html>\n<b>bad gateway</b></html>", "HTTP 502: <html> <b>bad gateway</b></html>", ""),
        (200, b"<html>welcome</html>", "not as MLflow does: <html>welcome</html>", ""),
        (302, b"", "sends us on to https://elsewhere.example/", ""),
        (401, b"", "HTTP 401: Unauthorized", ""),
    ],
)
def test_an_answer_that_is_none_says_what_it_was(door: Door, status: int, answer: bytes, says: str, code: str) -> None:
    door.fault, door.answer = lambda *_request: status, answer
    with pytest.raises(TrackingError, match=says) as caught:
        RestClient(door.uri, {}).experiments(1)
    assert (caught.value.code, caught.value.status) == (code, status)
    assert not isinstance(caught.value, UnreachableError)


def test_who_does_not_answer_is_not_waited_for(door: Door) -> None:
    door.fault = lambda *_request: "hang"
    with pytest.raises(UnreachableError, match=r"^timed out$"):
        RestClient(door.uri, {}).run("1")
    with pytest.raises(UnreachableError, match=r"^Connection refused$"):
        RestClient(f"http://localhost:{free_port()}", {}).run("1")
    with pytest.raises(UnreachableError, match=r"not known|resolution"):
        RestClient("http://nowhere.invalid", {}).run("1")


def test_a_certificate_of_ones_own_is_trusted_when_it_is_named(door: Door, tmp_path: Path) -> None:
    import ssl

    names = ["-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost"]
    more = ["-addext", "subjectAltName=DNS:localhost", "-days", "2", "-nodes"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", *names, *more], cwd=tmp_path, check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    door.listener.socket = context.wrap_socket(door.listener.socket, server_side=True)
    door.fault = lambda *_request: 200
    uri = door.uri.replace("http:", "https:")
    with pytest.raises(UnreachableError, match="certificate verify failed"):
        RestClient(uri, {}).experiments(1)
    named = {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(tmp_path / "cert.pem")}
    assert RestClient(uri, named).experiments(1) == []
    with pytest.warns(Warning, match="Unverified HTTPS request"):
        assert RestClient(uri, {"MLFLOW_TRACKING_INSECURE_TLS": "true"}).experiments(1) == []


def test_our_own_client_is_for_servers_that_need_no_plugin() -> None:
    assert speaks("https://server", {})
    assert not speaks("https://server", {"MLFLOW_TRACKING_AUTH": "kubernetes"})
    assert not speaks("databricks", {})
    assert not speaks("sqlite:///x.db", {})
