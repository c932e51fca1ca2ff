"""Tracking URI -> a store that MLflow can open: made safely when it is missing, explained when it is unfit.

MLflow itself breaks a missing sqlite database for good when several processes open it at once.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from urllib.parse import urlsplit

from repro import scratch
from repro.errors import BadInputError, EnvironmentUnfitError
from repro.project import cache_folder

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https", "databricks")
BUSY_SECONDS = 5.0  # for which another program may hold a database


def resolve_uri(configured: str | None, root: Path) -> str:
    """An absolute tracking URI without a password: a relative sqlite path is one below `root`.

    Raises:
        BadInputError: MLflow cannot keep runs there, or a server's address holds a password.
    """
    uri = configured or f"sqlite:///{root / 'mlflow.db'}"
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme in SERVERS:
        if has_password(uri):
            raise BadInputError(
                "the tracking URI holds a password, which would be written into every record",
                hints=["set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in place of it"],
            )
        return uri.rstrip("/")
    if scheme not in DATABASES or ":" not in uri:
        raise BadInputError(
            f"tracking.uri: MLflow keeps no runs in {uri!r} any more (files and folders as a store are retired)",
            hints=[
                "leave it out: the project's own sqlite:///mlflow.db",
                "a database or a server: sqlite:///FILE, postgresql://…, http://HOST:PORT",
                "an old mlruns/ folder: `mlflow migrate-filestore` copies it into a database",
            ],
        )
    if scheme == "sqlite":
        prefix, found, path = uri.partition(":///")
        if not found or not path or path.startswith(":memory:"):
            raise BadInputError(f"tracking.uri: {uri!r} names no file", hints=["sqlite:///relative.db, sqlite:////abs"])
        return f"{prefix}:///{root / path}"
    return without_password(uri)


def has_password(uri: str) -> bool:
    """Whether a URI is one that no record may show."""
    return urlsplit(uri).password is not None


def without_password(uri: str) -> str:
    """A URI as records and messages may show it."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    user, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.partition(':')[0]}@{host}").geturl()


def with_password(uri: str, environ: Mapping[str, str]) -> str:
    """A URI as MLflow needs it: with the password that MLFLOW_TRACKING_URI has for it."""
    given = environ.get("MLFLOW_TRACKING_URI", "")
    return given if given and has_password(given) and without_password(given) == uri else uri


def sqlite_file(uri: str) -> Path | None:
    """The database file of a sqlite URI; None for every other kind."""
    if not uri.startswith("sqlite"):
        return None
    return Path(uri.partition(":///")[2].partition("?")[0])


def artifacts(file: Path) -> Path:
    """Where artifacts of a sqlite store lie: where `mlflow server` in its folder would put them."""
    return file.parent / "mlartifacts"


def prepare(uri: str) -> None:
    """Make the sqlite database when it is missing, check it when it is there; other stores are left to MLflow.

    Raises:
        EnvironmentUnfitError: it cannot be made, is no database of MLflow's, or is of another version of it.
    """
    file = sqlite_file(uri)
    if file is None:
        return
    try:
        if _missing(file):
            _create(file)
        found = _version(file)
    except (OSError, sqlite3.DatabaseError) as error:
        locked = "database is locked" in str(error)
        mend = "make it writable, or move it away: `repro sync` fills a new one"
        raise EnvironmentUnfitError(
            f"the tracking store {file} cannot be used",
            evidence=[str(error)],
            hints=["end what writes to it; then `repro sync`" if locked else mend, "another: tracking.uri=…"],
        ) from error
    _require_version(uri, file, found)


def _missing(file: Path) -> bool:
    return not file.exists() or file.stat().st_size == 0


def _create(file: Path) -> None:
    """A migrated database under its name in one step, one process at a time."""
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f"{file.name}.lock")):
        if not _missing(file):
            return
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        os.close(descriptor)
        try:
            _fill(Path(temporary))
            # else artifacts of the experiment "Default" would go to where the template was made
            _execute(Path(temporary), "UPDATE experiments SET artifact_location = ?", (artifacts(file) / "0").as_uri())
            Path(temporary).chmod(0o666 & ~_umask())
            Path(temporary).replace(file)
        finally:
            Path(temporary).unlink(missing_ok=True)


def _fill(file: Path) -> None:
    """Copy the cached template: migrating a database takes seconds. Without a cache, migrate this one."""
    from filelock import FileLock

    template = cache_folder() / f"mlflow-{_installed()}.db"
    try:
        template.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(template.with_suffix(".lock")):
            if _missing(template):
                with scratch.folder(".mlflow-", template.parent) as folder:
                    _migrate(folder / "mlflow.db")
                    (folder / "mlflow.db").replace(template)
    except OSError:  # an unwritable cache costs time, nothing else
        _migrate(file)
    else:
        shutil.copyfile(template, file)


def _migrate(file: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"sqlite:///{file}", str(file.parent)).engine.dispose()


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _execute(file: Path, statement: str, *values: str) -> list[tuple[str]]:
    connection = sqlite3.connect(file, timeout=BUSY_SECONDS)
    try:
        with connection:
            return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


def _version(file: Path) -> str:
    """The schema version of a database; "" when MLflow did not make it."""
    tables = _execute(file, "SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'")
    found = _execute(file, "SELECT version_num FROM alembic_version") if tables else []
    return found[0][0] if found else ""


def _require_version(uri: str, file: Path, found: str) -> None:
    installed = _installed()
    newest, known = _schema_versions()
    if found == newest:
        if not os.access(file, os.W_OK) or not os.access(file.parent, os.W_OK):
            raise EnvironmentUnfitError(
                f"the tracking store {file} is read-only", hints=["make the file and its folder writable"]
            )
    elif found in known:
        raise EnvironmentUnfitError(
            f"the tracking store {file} was made by an MLflow older than {installed} (schema {found})",
            hints=[f"cp {file} {file}.backup && mlflow db upgrade {uri}", "then `repro sync`"],
        )
    elif found:
        raise EnvironmentUnfitError(
            f"the tracking store {file} was made by an MLflow newer than {installed} (schema {found})",
            hints=["install the MLflow that made it: pip install -U mlflow", "then `repro sync`"],
        )
    else:
        raise EnvironmentUnfitError(
            f"{file} is a database, but none of MLflow's", hints=["name another file: tracking.uri=sqlite:///other.db"]
        )


def _installed() -> str:
    from importlib import metadata

    return metadata.version("mlflow")


def _schema_versions() -> tuple[str, frozenset[str]]:
    """The newest schema version of the installed MLflow, and all, as its migrations say; nothing of it is imported."""
    package = util.find_spec("mlflow")
    places = (package.submodule_search_locations if package else None) or []
    revisions, older = set(), set()
    for place in places:
        for migration in (Path(place) / "store" / "db_migrations" / "versions").glob("[0-9a-f]*_*.py"):
            text = migration.read_text(encoding="utf-8")
            revisions.update(re.findall(r"""^revision\s*=\s*["'](\w+)""", text, re.MULTILINE))
            older.update(re.findall(r"""^down_revision\s*=\s*["'](\w+)""", text, re.MULTILINE))
    return next(iter(revisions - older), ""), frozenset(revisions)
