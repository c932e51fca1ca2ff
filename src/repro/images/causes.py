"""Why a file of an image differs from one build to the next, and what helps: a table of the usual causes; pure."""

from __future__ import annotations

import re
from collections.abc import Callable

from repro.experiment import Value

ANY = frozenset({"there", "kind", "mode", "owner", "time", "link", "content", "size", "xattrs"})
CONTENT = frozenset({"content", "there"})
COPIED = re.compile(r"^(COPY|ADD) |#\(nop\) (COPY|ADD) ")


class Cause(Value, frozen=True, kw_only=True):
    """Why, and what to do in the Dockerfile."""

    text: str
    remedy: str


class _Case(Value, frozen=True, kw_only=True):
    """What is known of one path that differs."""

    path: str
    what: frozenset[str]  # as sameness.Difference has it
    made_by: str  # the instruction, as an image's history has it
    only_time_inside: bool  # the contents are equal but for the time in their header


def of(path: str, what: frozenset[str], *, made_by: str = "RUN", only_time_inside: bool = False) -> Cause:
    """The cause of the first rule that fits; the last one fits always."""
    case = _Case(path=path, what=what, made_by=made_by, only_time_inside=only_time_inside)
    return next(cause for fits, cause in RULES if fits(case))


def _at(pattern: str, what: frozenset[str] = ANY) -> Callable[[_Case], bool]:
    """Fits a path, relative to /, in which one of `what` differs."""
    compiled = re.compile(pattern)
    return lambda case: bool(case.what & what) and bool(compiled.search(case.path))


def _with_time_inside(pattern: str) -> Callable[[_Case], bool]:
    compiled = re.compile(pattern)
    return lambda case: "content" in case.what and case.only_time_inside and bool(compiled.search(case.path))


RULES: tuple[tuple[Callable[[_Case], bool], Cause], ...] = (
    (
        _at(r"(^|/)\.wh\.[^/]*$"),
        Cause(
            text="the mark of a removed file that a layer below has: it holds the time of its removal",
            remedy="empty such a file (`truncate -s 0`) in place of removing it, or keep tools from writing there",
        ),
    ),
    (
        _with_time_inside(r"\.pyc$"),
        Cause(
            text="Python bytecode with the time of its source inside",
            remedy="install with `pip --no-compile`, then `python -m compileall --invalidation-mode unchecked-hash`;"
            " PYTHONDONTWRITEBYTECODE=1 for Python programs that the build runs",
        ),
    ),
    (
        _at(r"\.pyc$|(^|/)__pycache__$", CONTENT),
        Cause(
            text="Python bytecode that depends on what the same process compiled before, or on its hash seed",
            remedy="compile everything at the end, in one process: PYTHONHASHSEED=0, compileall without -j;"
            " PYTHONDONTWRITEBYTECODE=1 for Python programs that the build runs",
        ),
    ),
    (
        _at(r"\.dist-info/(RECORD|direct_url\.json)$", CONTENT),
        Cause(
            text="what pip notes of an installation: hashes of files that differ, or the place that it was taken from",
            remedy="install with `pip --no-compile`, from wheels by name and version, not from a path",
        ),
    ),
    (
        _at(r"^var/cache/ldconfig/"),
        Cause(text="ldconfig's cache, with times and inode numbers", remedy="`rm -rf /var/cache/ldconfig` in the step"),
    ),
    (
        _at(r"^var/lib/apt/|^var/cache/apt/|^var/lib/apt$|^var/cache/apt$"),
        Cause(
            text="apt's lists and caches, of the day and of the mirror",
            remedy="`apt-get clean && rm -rf /var/lib/apt/lists/* /var/cache/apt/*` in the step that installs",
        ),
    ),
    (
        _at(r"^var/log/"),
        Cause(text="a log, with times", remedy="`rm -rf /var/log/*` in the step that writes it"),
    ),
    (
        _at(r"^var/cache/debconf/.*-old$|^var/lib/dpkg/.*-old$|^etc/(passwd|group|shadow|gshadow|subuid|subgid)-$"),
        Cause(
            text="a backup that a package tool makes before it changes a file",
            remedy="`rm -f /var/cache/debconf/*-old /var/lib/dpkg/*-old /etc/*-` in the step",
        ),
    ),
    (
        _at(r"^etc/shadow$", CONTENT),
        Cause(
            text="accounts made in the build, with the day of their making",
            remedy="`chage -d 0 NAME` after useradd, or make them in the base",
        ),
    ),
    (
        _at(r"^(etc|var/lib/dbus)/machine-id$|^etc/ssh/ssh_host_|^var/lib/systemd/random-seed$", CONTENT),
        Cause(
            text="drawn at random when a package is installed, and never meant for an image",
            remedy="remove it in the step; make it when a container starts, if it is needed at all",
        ),
    ),
    (
        _at(r"^etc/(hosts|hostname|resolv\.conf)$"),
        Cause(text="the builder's own network settings", remedy="leave it alone in RUN steps: containers get theirs"),
    ),
    (
        _at(r"(^|/)(\.wget-hsts|\.lesshst|\.\w+_history|\.node_repl_history|conda-meta/history)$|(^|/)\.cache(/|$)"),
        Cause(text="traces of the programs that ran in the build", remedy="remove it in the step that makes it"),
    ),
    (
        _at(r"^(tmp|var/tmp|run)/"),
        Cause(text="left over from the build", remedy="remove it in the step that makes it"),
    ),
    (
        _at(r"^var/cache/(fontconfig|man)/|(^|/)\.git/index$|\.(mo|cache)$", CONTENT),
        Cause(text="a cache with times or inode numbers", remedy="remove it in the step that makes it"),
    ),
    (
        _with_time_inside(r""),
        Cause(text="the time in a gzip header", remedy="`gzip -n`, or `tar ... | gzip -n`"),
    ),
    (
        _at(r"\.(zip|whl|jar|egg|npz|tar|tgz|gz|xz|bz2|zst)$", CONTENT),
        Cause(
            text="an archive, with the times and the order of its members",
            remedy="make it of sorted names and with one time (tar: `--sort=name --mtime=@0`), or outside of the build",
        ),
    ),
    (
        _at(r"\.(so|a|o|exe)(\.[\d.]+)?$|\.node$", CONTENT),
        Cause(
            text="compiled in the build: paths, times, or this machine's own processor inside",
            remedy="take a wheel (`pip --only-binary :all:`), or compile in a fixed folder, with SOURCE_DATE_EPOCH set"
            " and without -march=native",
        ),
    ),
    (
        lambda case: case.what == {"time"} and bool(COPIED.search(case.made_by)),
        Cause(
            text="COPY: the time of the build for what it makes and for the folder around it, or that of its source",
            remedy="from an earlier stage in which all has one time, with its folders: `COPY --from=STAGE /out/ /`",
        ),
    ),
    (
        lambda case: case.what == {"time"} and case.path == "etc" and case.made_by.endswith("# buildkit"),
        Cause(
            text="the time of the build: BuildKit of engines before 23 touches this folder in every RUN step",
            remedy="no RUN in the last stage, only COPY from an earlier one; or a newer engine, or its classic builder",
        ),
    ),
    (
        lambda case: case.what == {"time"},
        Cause(
            text="the time of the build",
            remedy="as the last command of the step: `find PATHS -exec touch -hcd @946684800 {} +`, with the folders"
            " in which something was made or removed",
        ),
    ),
    (
        lambda case: bool(case.what & {"mode", "owner"}) and not case.what & {"content", "there", "kind"},
        Cause(text="mode or owner", remedy="set them in the step: `chmod`, `chown`, `umask 022`"),
    ),
    (
        lambda case: "there" in case.what,
        Cause(text="made in one of the builds only", remedy="find the command that makes it under some condition only"),
    ),
    (
        lambda _case: True,
        Cause(
            text="its content depends on time, host name, chance, the number of processors, or what a network holds",
            remedy="look at the command that writes it: `date`, `hostname`, `nproc`, `$RANDOM`, unsorted output,"
            " packages without a version",
        ),
    ),
)
