"""An image -> what is in it: its system, its Python, the packages of both. Looked at once for each image id.

The databases of dpkg and apk are read out of a container that never starts: that works in images without a shell, and
nothing of the image can colour the answer. Which Python packages there are only the image's own Python can say (a
virtual environment, its system's packages behind it, `.pth` files), and reading its folders from outside would mean to
fetch all of them, gigabytes; so it is asked, as `rpm` is. A run never fails for what cannot be read; the inventory
says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from repro.engines import probe
from repro.engines.engine import Engine
from repro.errors import ReproError
from repro.experiment import Value
from repro.project import cache_folder
from repro.record import write_atomic

SCHEMA = 1
KEPT = 500  # inventories; the least recently written go
SUFFIX = ".packages.json"
SCRIPT = Path(__file__).parents[1] / "inside" / "packages.py"
OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")  # one is a link to the other
DPKG = ("/var/lib/dpkg/status", "/var/lib/dpkg/status.d")  # the folder: images without dpkg itself
APK = ("/lib/apk/db/installed", "/usr/lib/apk/db/installed")
RPM = ("rpm", "-qa", "--queryformat", "%{NAME}\\t%{EPOCHNUM}:%{VERSION}-%{RELEASE}\\t%{ARCH}\\n")


class OsPackage(Value, frozen=True, kw_only=True, order=True):
    """A package of the image's distribution."""

    name: str
    version: str
    architecture: str


class PythonPackage(Value, frozen=True, kw_only=True, order=True):
    """A package that the image's Python finds."""

    name: str
    version: str


class System(Value, frozen=True, kw_only=True):
    """The distribution, in the words of its os-release."""

    name: str = ""  # Debian GNU/Linux 12 (bookworm)
    id: str = ""  # debian
    version: str = ""  # 12; "" for rolling ones
    packages: str = ""  # their kind: deb, apk, rpm; "" where no database of them was found


class Inventory(Value, frozen=True, kw_only=True):
    """What is in an image. Nothing is left out in silence: `remarks` says what could not be read."""

    schema: int = SCHEMA
    image: str  # id
    system: System = System()
    python: str | None = None  # version of the Python that comes first on PATH
    python_packages: tuple[PythonPackage, ...] = ()
    os_packages: tuple[OsPackage, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 over all packages: equal for images with equal ones, whatever their bytes."""
        covered = [self.python, self.python_packages, self.os_packages]
        return hashlib.sha256(msgspec.json.encode(covered)).hexdigest()

    @property
    def summary(self) -> str:
        """One line for people, with the numbers of packages."""
        python = f"Python {self.python} ({len(self.python_packages)})" if self.python else "no Python"
        system = f"{self.system.name or 'no system'} ({len(self.os_packages)})"
        return "; ".join([f"{python}, {system}", *self.remarks])

    def text(self) -> str:
        """As packages.json."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1).decode() + "\n"


def read(path: Path) -> Inventory | None:
    """The inventory in a file, if there is one that this version understands."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        found = msgspec.json.decode(path.read_bytes(), type=Inventory)
        return found if found.schema == SCHEMA else None
    return None


def of(engine: Engine, image: str, *, say: Callable[[str], None] = lambda _line: None) -> Inventory:
    """The inventory of the image with this id, from the cache folder where it was looked at before."""
    if known := cached(image):
        return known
    say("looking at what is in it")
    try:
        found = look(engine, image)
    except (ReproError, OSError, ValueError, tarfile.TarError) as error:  # asked for again by the next run
        why = " ".join([error.what, *error.evidence]) if isinstance(error, ReproError) else str(error)
        return Inventory(image=image, remarks=(f"could not be looked at: {why}",))
    with contextlib.suppress(OSError):  # a full disk: the next run looks again
        keep(image, SUFFIX, found.text())
    return found


def cached(image: str) -> Inventory | None:
    """The inventory that this machine made of the image before, if it did."""
    return read(file(image, SUFFIX))


def file(image: str, suffix: str) -> Path:
    """Where what is known of an image is kept."""
    return cache_folder() / "images" / f"{image.rpartition(':')[2]}{suffix}"


def keep(image: str, suffix: str, text: str) -> None:
    """Write such a file, and forget the oldest of its kind."""
    target = file(image, suffix)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, text.encode())
    others = sorted(target.parent.glob(f"*{suffix}"), key=lambda path: path.stat().st_mtime)
    for old in others[:-KEPT]:
        old.unlink(missing_ok=True)


def look(engine: Engine, image: str) -> Inventory:
    """The inventory of an image, from the image itself.

    Raises:
        EnvironmentUnfitError: the engine refuses.
    """
    files = probe.files(engine, image, (*OS_RELEASE, *DPKG, *APK))
    texts = {path: files[path].decode(errors="replace") for path in sorted(files)}
    remarks: list[str] = []
    if dpkg := [text for path, text in texts.items() if path.startswith(DPKG)]:
        kind, installed = "deb", dpkg_packages("\n\n".join(dpkg))
    elif apk := [text for path, text in texts.items() if path in APK]:
        kind, installed = "apk", apk_packages("\n\n".join(apk))
    else:
        kind, installed = _ask_rpm(engine, image, remarks)
    python, packages = _ask_python(engine, image, remarks)
    release = os_release(next((texts[path] for path in OS_RELEASE if path in texts), ""))
    return Inventory(
        image=image,
        system=System(
            name=release.get("PRETTY_NAME", ""),
            id=release.get("ID", ""),
            version=release.get("VERSION_ID", ""),
            packages=kind,
        ),
        python=python,
        python_packages=packages,
        os_packages=installed,
        remarks=tuple(remarks),
    )


def _ask_rpm(engine: Engine, image: str, remarks: list[str]) -> tuple[str, tuple[OsPackage, ...]]:
    answer = probe.said(engine, image, RPM)
    if answer is None or answer[0] != 0:
        remarks.append("its system's packages are not known: neither dpkg's nor apk's database is there, nor rpm")
        return "", ()
    return "rpm", rpm_packages(answer[1].decode(errors="replace"))


def _ask_python(engine: Engine, image: str, remarks: list[str]) -> tuple[str | None, tuple[PythonPackage, ...]]:
    script = SCRIPT.read_text(encoding="utf-8")
    for program in ("python", "python3"):
        answer = probe.said(engine, image, (program, "-c", script))
        if answer is None:
            continue
        code, said = answer
        with contextlib.suppress(msgspec.MsgspecError, IndexError):
            told = msgspec.json.decode(said.splitlines()[-1], type=_Told)
            return told.version, tuple(sorted(PythonPackage(name=n, version=v) for n, v in told.packages))
        remarks.append(f"its Python's packages are not known: {program} did not answer (exit code {code})")
        return None, ()
    return None, ()


class _Told(Value, frozen=True, kw_only=True):
    """The line that inside/packages.py prints."""

    version: str
    packages: tuple[tuple[str, str], ...]


def os_release(text: str) -> dict[str, str]:
    """The values of an os-release file."""
    pairs = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, equals, value in pairs if equals}


def dpkg_packages(text: str) -> tuple[OsPackage, ...]:
    """The installed packages in dpkg's database; entries of images without dpkg have no status."""
    return _packages(
        (each["Package"], each["Version"], each.get("Architecture", ""))
        for each in _paragraphs(text, ": ")
        if "Package" in each and "Version" in each and each.get("Status", "ok installed").endswith(" installed")
    )


def apk_packages(text: str) -> tuple[OsPackage, ...]:
    """The packages in apk's database."""
    return _packages(
        (each["P"], each.get("V", ""), each.get("A", "")) for each in _paragraphs(text, ":") if "P" in each
    )


def rpm_packages(text: str) -> tuple[OsPackage, ...]:
    """The packages that rpm lists; an epoch of 0 is none."""
    lines = (line.split("\t") for line in text.splitlines())
    return _packages((line[0], line[1].removeprefix("0:"), line[2]) for line in lines if len(line) == 3)


def _packages(found: Iterable[tuple[str, str, str]]) -> tuple[OsPackage, ...]:
    return tuple(sorted(OsPackage(name=name, version=version, architecture=arch) for name, version, arch in found))


def _paragraphs(text: str, separator: str) -> Iterator[dict[str, str]]:
    """Blocks of `key: value` lines with blank lines between them; lines that go on are left out."""
    for block in text.split("\n\n"):
        lines = (line.partition(separator) for line in block.splitlines() if line[:1].strip())
        if pairs := {key: value.strip() for key, found, value in lines if found}:
            yield pairs


def differences(before: Inventory, now: Inventory) -> tuple[str, ...]:
    """What is in `now` in place of `before`, one package each: `numpy 2.4.5 -> 2.4.6`, `six 1.17.0 is new`."""
    changed = []
    for one, other in zip(_versions(before), _versions(now), strict=True):
        for name in sorted(one.keys() | other.keys()):
            was, became = one.get(name), other.get(name)
            if was is None:
                changed.append(f"{name} {became} is new")
            elif became is None:
                changed.append(f"{name} {was} is gone")
            elif was != became:
                changed.append(f"{name} {was} -> {became}")
    return tuple(changed)


def _versions(inventory: Inventory) -> tuple[dict[str, str], dict[str, str]]:
    """Versions by name: of Python and its packages, of the system's; architectures that share a name stay apart."""
    python = {"Python": inventory.python} if inventory.python else {}
    counts = Counter(each.name for each in inventory.os_packages)
    system = {
        each.name if counts[each.name] == 1 else f"{each.name}:{each.architecture}": each.version
        for each in inventory.os_packages
    }
    return python | {each.name: each.version for each in inventory.python_packages}, system
