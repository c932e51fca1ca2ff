"""conf/ + overrides -> Experiment: the only door to Hydra and OmegaConf. No DictConfig gets past it.

The library's own groups (`pkg://repro.conf`) are put behind the project's conf/ on Hydra's search path,
for our process only: a project adds to them and overrides them file by file.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from repro import __version__
from repro.errors import BadInputError, EnvironmentUnfitError
from repro.experiment import BuildConfig, Experiment, ImageConfig, Value
from repro.project import Project, ignored_folder
from repro.record import write_atomic

HYDRA_VERSION_BASE = "1.3"
LIBRARY = Path(__file__).parent / "conf"  # pkg://repro.conf
Struct = TypeVar("Struct", bound=msgspec.Struct)
FREE = ("params.", "env.", "image.build_args.", "build.secrets.", "secrets.", "data.")  # whose keys are the user's own
SECTIONS: dict[type, str] = {ImageConfig: "image", BuildConfig: "build"}
SIZES = {"resources": ("memory", "shm", "tmp"), "outputs": ("limit",)}  # keys that may have a unit
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class Composed(Value, frozen=True, kw_only=True):
    """An experiment as composed, and what of the command line led to it."""

    experiment: Experiment
    overrides: tuple[str, ...]
    folder: str | None  # where the user wants the run folder (hydra.run.dir, hydra.sweep.subdir); None: our choice
    sweep: str | None  # the folder of the multirun that this is a job of


def run(project: Project, arguments: Sequence[str], job: Callable[[Callable[[], Composed]], None]) -> None:
    """Let Hydra parse `arguments` and call `job` once, or once per job of a multirun; all of Hydra's flags work.

    `job` is given a function that returns its composed experiment, or raises BadInputError for a wrong type or a
    missing value: an exception that left `job` would be printed by Hydra, and would end a multirun.

    Raises:
        BadInputError: anything in conf/ or in the arguments that cannot be composed.
        EnvironmentUnfitError: the folder that the user chose for the run cannot be made.
    """
    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting: we word it
    os.environ["REPRO_RUNS_DIR"] = str(project.runs)  # the default sweep folder is below it, whatever the cwd
    _register_search_path()
    sys.argv = ["python -m repro.run", *arguments]
    overrides = [argument for argument in arguments if not argument.startswith("-")]

    begun = False

    def task(config: Any) -> None:
        nonlocal begun
        begun = True

        def composed() -> Composed:
            with _worded(project, overrides):
                return _composed(config)

        job(composed)

    task.__module__ = "__main__"  # Hydra names the job after it, and shows it in --help
    try:
        with _worded(project, overrides):
            hydra.main(version_base=HYDRA_VERSION_BASE, config_path=str(project.conf), config_name="config")(task)()
    except OSError as error:
        if begun:
            raise
        kind = BadInputError if isinstance(error, (FileExistsError, NotADirectoryError)) else EnvironmentUnfitError
        raise kind(
            f"the folder {error.filename} cannot be made",
            evidence=[str(error)],
            hints=["choose another hydra.run.dir or hydra.sweep.dir, or leave them alone"],
        ) from error


def compose(project: Project, overrides: Sequence[str]) -> Experiment:
    """The experiment that these overrides describe, without Hydra's command line.

    Raises:
        BadInputError: as `run`.
    """
    with _worded(project, overrides):
        return _experiment(_to_container(_compose(project, overrides)))


def compose_image(project: Project, overrides: Sequence[str]) -> tuple[ImageConfig, BuildConfig]:
    """The image alone, and how it is built: no experiment has to be chosen.

    The answer is kept, for as long as no file in conf/ changes: importing Hydra takes several times as long as all
    the rest of `repro rebuild --if-changed`.

    Raises:
        BadInputError: as `run`.
    """
    kept = project.scratch / "image-config.json"
    key = _state(project, overrides)
    if key and (found := _recall(kept, key)):
        return found
    with _worded(project, overrides):
        container = _to_container(_compose(project, overrides), missing_allowed=True)
        image, build = _image(container), _convert(container.get("build", {}), BuildConfig, container)
    if key:
        ignored_folder(project.scratch)
        write_atomic(kept, msgspec.json.encode({"key": key, "image": image, "build": build}))
    return image, build


def _state(project: Project, overrides: Sequence[str]) -> str:
    """What a composed image depends on, as one digest; "" when that is more than files and arguments."""
    if any("${" in override or "hydra." in override for override in overrides):
        return ""
    hasher = hashlib.sha256(f"{__version__} {list(overrides)!r}".encode(errors="surrogateescape"))
    try:
        for file in sorted([*_files(LIBRARY), *_files(project.conf)]):
            text = file.read_bytes()
            own = file.is_relative_to(LIBRARY)  # whose image depends on no more
            if not own and ((b"${" in text and b"oc.env" in text) or b"searchpath" in text):
                return ""
            hasher.update(b"%d " % len(text) + os.fsencode(file) + b"\0" + text)
    except OSError:  # Hydra finds the words for it, if it is a file that it needs
        return ""
    return hasher.hexdigest()


def _files(conf: Path) -> Iterator[Path]:
    """Every file that Hydra could read there: it follows links to folders."""
    for folder, _folders, names in os.walk(conf, followlinks=True):
        yield from (Path(folder, name) for name in names if _is_config(name))


def _is_config(name: str) -> bool:
    return name.endswith(".yaml") and not name.startswith(".")  # editors leave locks and copies there


def _recall(kept: Path, key: str) -> tuple[ImageConfig, BuildConfig] | None:
    try:
        found = msgspec.json.decode(kept.read_bytes())
        if found["key"] != key:
            return None
        return msgspec.convert(found["image"], ImageConfig), msgspec.convert(found["build"], BuildConfig)
    except (OSError, KeyError, TypeError, msgspec.MsgspecError):
        return None


def compose_tracking_uri(project: Project) -> str | None:
    """The tracking URI that the project's configuration names, if any.

    Raises:
        BadInputError: as `run`.
    """
    with _worded(project, ()):
        uri = _compose(project, ()).tracking.uri
    return str(uri) if uri else None


def options(project: Project, group: str) -> list[str]:
    """The names in a group, the project's own and the library's."""
    folders = [project.conf / group, LIBRARY / group]
    files = (file for folder in folders if folder.is_dir() for file in folder.iterdir())
    return sorted({file.stem for file in files if _is_config(file.name)})


def _register_search_path() -> None:
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class LibraryConf(SearchPathPlugin):
        """Registered, not discovered: other Hydra programs in this environment stay as they are."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            search_path.append(provider="repro", path="pkg://repro.conf")

    Plugins.instance().register(LibraryConf)


def _compose(project: Project, overrides: Sequence[str]) -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    _register_search_path()
    with initialize_config_dir(str(project.conf), version_base=HYDRA_VERSION_BASE):
        return hydra_compose("config", overrides=list(overrides))


def _composed(config: Any) -> Composed:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    multirun = hydra.mode == RunMode.MULTIRUN
    chosen = hydra.sweep.subdir != "." if multirun else hydra.run.dir != "."
    return Composed(
        experiment=_experiment(_to_container(config)),
        overrides=tuple(hydra.overrides.task),
        folder=hydra.runtime.output_dir if chosen else None,
        sweep=str(Path(hydra.sweep.dir).absolute()) if multirun else None,
    )


def _to_container(config: Any, *, missing_allowed: bool = False) -> dict[str, Any]:
    from omegaconf import OmegaConf

    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=not missing_allowed)
    return {str(key): value for key, value in container.items() if key != "hydra"}  # type: ignore[union-attr]


def _experiment(container: dict[str, Any]) -> Experiment:
    for group, keys in SIZES.items():
        values: Any = container.get(group)
        for key in keys if isinstance(values, dict) else ():
            if isinstance(values.get(key), str):
                values[key] = _bytes(f"{group}.{key}", values[key])
    if isinstance(container.get("command"), list):
        container["command"] = [_word(each) for each in container["command"]]
    for holder, key in ((container, "env"), (container.get("image"), "build_args")):
        _words(holder, key)
    for path, value in _leaves(container):
        _require_json(path, value)
    return _convert(container, Experiment, container)


def _named(path: str, container: dict[str, Any]) -> str:
    """The path of an entry with the user's own name in it, which msgspec leaves out, where it can be told."""
    pattern = re.compile(re.escape(path).replace(re.escape("[...]"), r"\.([^.]+)"))
    found = [key for key in _flat(container) if "[...]" in path and pattern.fullmatch(key)]
    return found[0] if len(found) == 1 else path


def _require_json(path: str, value: Any) -> None:
    """Refuse what the configuration in the container, which is JSON, has no form for."""
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInputError(
            f"configuration: {path} is {value}, for which JSON, as the container reads it, has no form",
            hints=[f"leave it empty ({path}=null), or give it as text: {path}=\"'{value}'\""],
        )
    if isinstance(value, str) and not value.isascii():
        value.encode()  # bytes of the command line that are not UTF-8 end here


def _image(container: dict[str, Any]) -> ImageConfig:
    if not isinstance(container.get("image"), dict):
        raise _no_group("image")
    _words(container["image"], "build_args")
    return _convert(container["image"], ImageConfig, container)


def _words(holder: Any, key: str) -> None:
    if isinstance(holder, dict) and isinstance(holder.get(key), dict):
        holder[key] = {name: _word(value) for name, value in holder[key].items()}


def _word(value: Any) -> Any:
    """A number as the text that a command line has for it; a bool stays one: is it `true`, `True` or `1`?"""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _bytes(key: str, text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if not match:
        raise BadInputError(
            f"{key}: {text!r} is no size", hints=["write bytes, or a number with a unit: 512m, 4g, 4GiB"]
        )
    return int(float(match[1]) * UNITS[match[2]])


def _convert(raw: Any, kind: type[Struct], container: dict[str, Any]) -> Struct:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        path = where.rstrip("`").lstrip(".")
        path = ".".join(filter(None, [SECTIONS.get(kind, ""), path]))
        path = _named(path, container)
        if unknown := re.search(r"unknown field `(.*)`", what):
            key = ".".join(filter(None, [path, unknown[1]]))
            raise _unknown_key(key, _schema_keys() | set(_flat(container)) - {key}) from error
        if missing := re.search(r"missing required field `(.*)`", what):
            key = ".".join(filter(None, [path, missing[1]]))
            raise _missing_value(key) from error
        hints = ["quote it, so that YAML takes it as text: 'true'"] if "`str`, got `bool`" in what else []
        raise BadInputError(
            f"configuration: {path or 'top level'}: {what[0].lower()}{what[1:]}", hints=hints
        ) from error


@contextmanager
def _worded(project: Project, overrides: Sequence[str]) -> Iterator[None]:
    """Turn Hydra's, OmegaConf's and YAML's exceptions into one clear sentence with what to try."""
    import yaml
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        yield
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        if key in ("name", "command") and not any(each.startswith("experiment=") for each in overrides):
            raise _no_experiment(project) from error
        raise _missing_value(key) from error
    except MissingConfigException as error:
        raise _missing_config(project, error) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise _composition_error(project, overrides, error) from error
    except yaml.YAMLError as error:
        raise BadInputError("a file in conf/ is not valid YAML", evidence=[str(error)]) from error
    except UnicodeError as error:
        raise BadInputError(
            "a file in conf/ or an argument is not UTF-8 text",
            evidence=[str(error), *_not_text(project)],
            hints=["save it as UTF-8"],
        ) from error
    except ValueError as error:  # Hydra's own for `data=null`
        raise BadInputError(
            f"configuration: {error}", hints=["a group without a choice: data=none; every other needs one"]
        ) from error


def _not_text(project: Project) -> Iterator[str]:
    for file in _files(project.conf):
        try:
            file.read_text(encoding="utf-8")
        except UnicodeError:
            yield str(file)
        except OSError:
            continue


def _no_group(name: str) -> BadInputError:
    return BadInputError(
        f"configuration: there is no {name}",
        hints=["conf/config.yaml, where there is one, begins with `defaults: [repro, _self_]`"],
    )


def _no_experiment(project: Project) -> BadInputError:
    names = options(project, "experiment")
    if not names:
        return BadInputError(
            f"no experiment chosen, and {project.conf / 'experiment'} holds none",
            hints=["write one: a file conf/experiment/NAME.yaml (docs/experiments.md shows how)"],
        )
    return BadInputError("no experiment chosen", hints=[f"experiment={name}" for name in names])


def _missing_value(key: str) -> BadInputError:
    return BadInputError(f"configuration: {key} has no value", hints=[f"give it one: {key}=..."])


def _missing_config(project: Project, error: Any) -> BadInputError:
    group, _, name = str(error.missing_cfg_file or "").strip("/").rpartition("/")
    names = options(project, group) if group else []
    if not names:
        return BadInputError("configuration: " + str(error).splitlines()[0])
    close = difflib.get_close_matches(name, names, 1)
    hints = [f"did you mean {group}={close[0]}?"] if close else []
    return BadInputError(f"there is no {group} {name!r}", hints=[*hints, f"there are: {', '.join(names)}"])


def _composition_error(project: Project, overrides: Sequence[str], error: Exception) -> BadInputError:
    text = str(error)
    if groups := re.search(r"Could not override '(experiment|image|data|resources)'", text):
        return _no_group(groups[1])
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"full_key: (\S+)", text)
    if unknown and "not in struct" in f"{text} {error.__cause__}":
        key = unknown[1]
        others = [each for each in overrides if not each.lstrip("+~").startswith(f"{key}=")]
        return _unknown_key(key, _known_keys(project, others))
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("object_type=")]
    return BadInputError("configuration: " + (lines[0] if lines else type(error).__name__), evidence=lines[1:])


def _unknown_key(key: str, known: set[str]) -> BadInputError:
    if key.startswith(FREE) or key in known:
        free = f"a new key of {key.partition('.')[0]}" if key.startswith(FREE) else "a key that is not there yet"
        hint = f"{free} is added with a plus sign: +{key}=..."
    else:
        hint = "`repro run experiment=NAME --cfg job` shows every key; an experiment's own settings go below `params`"
    close = difflib.get_close_matches(key, sorted(known), 1, cutoff=0.7)
    by_leaf = [each for each in sorted(known) if each.rpartition(".")[2] == key.rpartition(".")[2]]
    guesses = [guess for guess in (by_leaf or close)[:1] if guess != key and not key.startswith(f"{guess}.")]
    return BadInputError(
        f"configuration: unknown key {key}", hints=[*(f"did you mean {guess}?" for guess in guesses), hint]
    )


def _known_keys(project: Project, overrides: Sequence[str]) -> set[str]:
    """Keys for "did you mean": the schema's, and those of the configuration as far as it composes."""
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    groups = [each for each in overrides if each.startswith(("experiment=", "data=", "image=", "resources="))]
    for attempt in (groups, []):
        try:
            config = _to_container(_compose(project, attempt), missing_allowed=True)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError):
            continue
        return _schema_keys() | set(_flat(config)) | {"experiment", "image", "data", "resources"}
    return _schema_keys()


def _schema_keys() -> set[str]:
    def walk(kind: type[Any], prefix: str) -> Iterator[str]:
        for field in msgspec.structs.fields(kind):
            yield prefix + field.name
            parts = [field.type, *getattr(field.type, "__args__", ())]
            for part in parts:
                if isinstance(part, type) and issubclass(part, msgspec.Struct):
                    yield from walk(part, f"{prefix}{field.name}.")

    return set(walk(Experiment, ""))


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no dict or list, with its path."""
    if isinstance(value, dict):
        for key, member in value.items():
            yield from _leaves(member, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, member in enumerate(value):
            yield from _leaves(member, f"{path}[{number}]")
    else:
        yield path, value
