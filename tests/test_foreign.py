"""Runs that somebody else gave: what of their records may act on this machine. Values and real files; no engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from repro import foreign
from repro.bundle import contents
from repro.errors import BadInputError, RefusedError
from repro.experiment import BuildConfig, Experiment, RunSecret, SecretSource
from repro.project import Project
from repro.record import DatasetUsed, End, Ended, FileUsed, OutputFile, Record, RunFolder
from repro.restoring import consent, materials, replan
from repro.restoring.materials import Materials, Source
from repro.tracking import tracking
from tests.runs_to_compare import NOW, PLANNED
from tests.test_bundle import bundle, imported, rewritten, run  # noqa: F401 - fixtures
from tests.test_plan import CIRCUMSTANCES, EXPERIMENT, INGREDIENTS

ENDED = Ended(at=NOW, end=End.FINISHED, exit_code=0, reason="exit code 0", outputs=())
DATA = DatasetUsed(name="d", digest="0" * 64, files=(FileUsed(path="a/x", size=1, sha256="0" * 64),), folder="/d")
CODE = msgspec.structs.replace(PLANNED.code, commit="a" * 40, tree="b" * 40)
HONEST = Record(
    planned=msgspec.structs.replace(PLANNED, data=(DATA,), code=CODE, code_prefix="sub/project"), ended=ENDED
)


def altered(**planned: Any) -> Record:
    return msgspec.structs.replace(HONEST, planned=msgspec.structs.replace(HONEST.planned, **planned))


def data(name: str = "d", path: str = "x", sha256: str = "0" * 64) -> dict[str, Any]:
    return {
        "data": (DatasetUsed(name=name, digest="", files=(FileUsed(path=path, size=1, sha256=sha256),), folder=""),)
    }


def test_an_honest_record_has_nothing_strange() -> None:
    assert foreign.strange(HONEST) == ()


@pytest.mark.parametrize(
    "planned",
    [
        {"run": "../../evil"},
        {"run": "a/b"},
        {"code": msgspec.structs.replace(CODE, commit="--open-files-in-pager=touch evil")},
        {"code": msgspec.structs.replace(CODE, tree="HEAD")},
        {"code_prefix": "../other"},
        {"code_prefix": "/etc"},
        {"image": msgspec.structs.replace(PLANNED.image, id="../containers/json")},
        {"image": msgspec.structs.replace(PLANNED.image, tag="--x")},
        data(name="../x"),
        data(path="../../.ssh/authorized_keys"),
        data(path="/etc/cron.d/x"),
        data(sha256="../../passwd"),
    ],
)
def test_a_name_that_leads_elsewhere_is_found(planned: dict[str, Any]) -> None:
    assert len(foreign.strange(altered(**planned))) == 1


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a//b"])
def test_an_output_that_leads_out_of_the_outputs_is_found(path: str) -> None:
    ended = msgspec.structs.replace(ENDED, outputs=(OutputFile(path=path, size=1, sha256="0" * 64),))
    assert foreign.strange(msgspec.structs.replace(HONEST, ended=ended)) == (f"{path!r} leads out of the outputs",)


def test_a_run_that_is_not_over_could_have_our_engine_stop_containers() -> None:
    assert foreign.strange(msgspec.structs.replace(HONEST, ended=None)) == ("it is of a run that is not over",)


# secrets ---------------------------------------------------------------------------------------------------------


WISHING: Experiment = msgspec.structs.replace(
    EXPERIMENT,
    secrets={
        "A": RunSecret(command="touch evil"),
        "B": RunSecret(file="~/.ssh/id_ed25519"),
        "C": RunSecret(env="AWS_SECRET_ACCESS_KEY", to="env"),
    },
    build=BuildConfig(secrets={"D": SecretSource(file="/etc/shadow")}, ca_bundle="/etc/haproxy.pem"),
)
RUN_SECRETS = (
    "secret A: program touch evil",
    "secret B: file ~/.ssh/id_ed25519",
    "secret C: environment variable AWS_SECRET_ACCESS_KEY",
)
BUILD_SECRETS = ("build secret D: file /etc/shadow", "build.ca_bundle: file /etc/haproxy.pem")


@pytest.mark.parametrize("built", [False, True])
def test_what_a_foreign_run_would_take_from_this_machine_is_refused_by_name(tmp_path: Path, built: bool) -> None:
    folder = RunFolder(tmp_path)
    consent.require(folder, WISHING, built=built, given=False)  # of our own runs, nobody asks
    folder.elsewhere.touch()
    with pytest.raises(RefusedError) as caught:
        consent.require(folder, WISHING, built=built, given=False)
    assert caught.value.evidence == RUN_SECRETS + (BUILD_SECRETS if built else ())
    assert "--give-secrets" in caught.value.hints[0]
    consent.require(folder, WISHING, built=built, given=True)
    consent.require(folder, EXPERIMENT, built=True, given=False)  # it wishes nothing


def test_a_wish_hides_behind_no_code_of_a_terminal() -> None:
    hidden = msgspec.structs.replace(EXPERIMENT, secrets={"A": RunSecret(command="touch evil\x1b[2K\rharmless")})
    (told,) = consent.wishes(hidden, built=False)
    assert told.isprintable()


def test_an_imported_run_is_known_to_be_somebody_elses(bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = RunFolder(Path(imported(bundle, tmp_path / "new").folder))
    assert consent.is_foreign(folder)


def test_a_bundle_whose_commit_is_an_option_of_git_is_refused(bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    def lie(files: dict[str, bytes]) -> None:
        record = msgspec.json.decode(files["record.json"], type=Record)
        code = msgspec.structs.replace(record.planned.code, commit=f"-Otouch {tmp_path}/evil")
        record = msgspec.structs.replace(record, planned=msgspec.structs.replace(record.planned, code=code))
        files["record.json"], files["record.canonical.json"] = msgspec.json.encode(record), contents.canonical(record)

    with pytest.raises(BadInputError) as caught:
        imported(rewritten(bundle, tmp_path / "lying.zip", lie), tmp_path / "new")
    assert "its record names no commit" in str(caught.value)
    assert not (tmp_path / "evil").exists()


# servers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs", [True, False])
def test_a_foreign_run_never_decides_where_it_is_tracked(
    project: Project, monkeypatch: pytest.MonkeyPatch, theirs: bool
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    wanted = msgspec.structs.replace(EXPERIMENT, tracking=msgspec.structs.replace(EXPERIMENT.tracking, uri="http://x"))
    folder = RunFolder(project.runs / HONEST.planned.run)
    folder.path.mkdir(parents=True)
    folder.write(altered(tracking_uri="http://x", project="/elsewhere"))
    if theirs:
        folder.elsewhere.touch()
    source = Source(experiment=wanted, ingredients=(), rebuild=False, offline=False, foreign=consent.is_foreign(folder))
    gathered = Materials(ingredients=INGREDIENTS, rebuilt=False, same_image=True)
    uris = {
        materials.plan(folder.read(), project, source, gathered, ("x",)).planned.tracking_uri,
        tracking._store_now(folder, project),
    }
    assert uris == ({tracking.resolve_uri(None, project)} if theirs else {"http://x"})


def test_a_foreign_record_decides_about_no_folder_of_this_machine() -> None:
    """The mounts of a rerun are made of what was found here, whatever the record says of folders."""
    record = altered(data=(msgspec.structs.replace(DATA, folder="/etc"),), project="/root", user="0:0")
    plan = replan.decide(record, EXPERIMENT, INGREDIENTS, CIRCUMSTANCES)
    sources = {mount.source for mount in plan.container.mounts}
    assert not any(source.startswith(("/etc", "/root")) for source in sources)
    assert plan.container.user == "1000:100"
