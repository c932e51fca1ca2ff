"""A folder of the user's -> its git Repository, and the one place that starts the `git` program.

GitPython starts the same program after an import of 0.2 s, several times what a whole capture takes.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, cast

from repro.errors import BadInputError, EnvironmentUnfitError, ReproError
from repro.experiment import Value
from repro.record import shown

EPOCH = 946_684_800  # 2000-01-01 UTC: the date of every snapshot commit

# The user's configuration decides what the content of a file is (line ends, filters), nothing else here.
_NO_HOOKS = ("-c", f"core.hooksPath={os.devnull}")
_CONFIG = (
    *("-c", "core.fsmonitor=false", "-c", "core.splitIndex=false"),
    *("-c", "core.ignoreStat=false", "-c", "core.safecrlf=false", "-c", "core.filesRefLockTimeout=10000"),
    *("-c", "i18n.commitEncoding=UTF-8"),
)
# Set by git while it runs a hook; they would send every command to another repository or index.
_FOREIGN = {f"GIT_{name}" for name in ("DIR", "WORK_TREE", "INDEX_FILE", "OBJECT_DIRECTORY", "COMMON_DIR")}
_FOREIGN |= {f"GIT_{name}" for name in ("PREFIX", "NAMESPACE", "ALTERNATE_OBJECT_DIRECTORIES", "EXTERNAL_DIFF")}
_FIXED = {
    **{f"GIT_{role}_NAME": "repro" for role in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{role}_EMAIL": "repro@localhost" for role in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{role}_DATE": f"{EPOCH} +0000" for role in ("AUTHOR", "COMMITTER")},
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",  # else it refreshes the indexes of submodules when it looks into them
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",  # its messages are read below
}


class Repository(Value, frozen=True, kw_only=True):
    """Where a repository's parts lie, and what HEAD is."""

    top: Path
    git_dir: Path  # of this worktree: HEAD and index
    common_dir: Path  # of all worktrees: objects and refs
    prefix: str  # "" or with a slash at the end
    head: str  # "" when there is no commit yet, and so is `tree`
    tree: str
    branch: str | None
    bare: bool = False  # no working tree: all commits, those of submodules too, are in its objects


class Talk(Value, frozen=True, kw_only=True):
    """What came of a git command that spoke with another repository."""

    code: int
    answer: str
    said: str  # on stderr, without the progress


def _command(where: Path, arguments: Iterable[str], *, hooks: bool = False) -> list[str]:
    return ["git", "-C", str(where), *(() if hooks else _NO_HOOKS), *_CONFIG, *arguments]


def _environment(index: Path | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    return {**kept, **_FIXED, **({"GIT_INDEX_FILE": str(index)} if index else {})}


def git(
    where: Path, *arguments: str, index: Path | None = None, stdin: bytes = b"", fine: tuple[int, ...] = (0,)
) -> bytes:
    """What one git command prints. `index`: the file to use in place of the user's."""
    try:
        done = subprocess.run(
            _command(where, arguments), input=stdin, capture_output=True, env=_environment(index), check=False
        )
    except FileNotFoundError:
        raise _no_git() from None
    if done.returncode not in fine:
        raise _failure(where, arguments, done.stderr)
    return done.stdout


@contextlib.contextmanager
def reading(where: Path, *arguments: str, stdin: bytes = b"") -> Iterator[IO[bytes]]:
    """The output of a git command, while it comes. Its input goes through a file: a pipe could block both sides."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as errors:
        given.write(stdin)
        given.seek(0)
        try:
            process = subprocess.Popen(
                _command(where, arguments), stdin=given, stdout=subprocess.PIPE, stderr=errors, env=_environment()
            )
        except FileNotFoundError:
            raise _no_git() from None
        with process:
            try:
                yield cast(IO[bytes], process.stdout)
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            errors.seek(0)
            raise _failure(where, arguments, errors.read())


def talk(where: Path, *arguments: str, say: Callable[[str], None], hooks: bool = False) -> Talk:
    """Let git speak with another repository; `say` hears of its progress. With `hooks`, the user's own are run."""
    said: list[str] = []
    with tempfile.TemporaryFile() as answer:
        try:
            process = subprocess.Popen(
                _command(where, arguments, hooks=hooks),
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=subprocess.PIPE,
                env=_environment(),
            )
        except FileNotFoundError:
            raise _no_git() from None
        with process:
            try:
                for raw in cast(IO[bytes], process.stderr):
                    *progress, line = os.fsdecode(raw).rstrip("\n").split("\r")
                    for each in [*progress, line]:
                        say(each.strip())
                    said.append(line.strip())
            except BaseException:
                process.kill()
                raise
        answer.seek(0)
        return Talk(code=process.returncode, answer=os.fsdecode(answer.read()), said="\n".join(said).strip())


def blobs(where: Path, oids: Iterable[str]) -> Iterator[bytes]:
    """The contents of these objects, which are there, one after the other and by one call of git."""
    with reading(where, "cat-file", "--batch", "--buffer", stdin="".join(f"{oid}\n" for oid in oids).encode()) as found:
        while header := found.readline():
            yield found.read(int(header.split()[2]))
            found.read(1)


def has(repository: Repository, commit: str) -> bool:
    """Whether a commit is in a repository."""
    return bool(git(repository.top, "rev-parse", "-q", "--verify", f"{commit}^{{commit}}", fine=(0, 1, 128)))


def _no_git() -> EnvironmentUnfitError:
    return EnvironmentUnfitError(
        "git is not installed, or not on PATH",
        hints=["install it (Debian, Ubuntu: `apt-get install git`); snapshots of the code are git commits"],
    )


def _failure(where: Path, arguments: Iterable[str], stderr: bytes) -> ReproError:
    """Git's message as one of our errors."""
    said = os.fsdecode(stderr).strip()
    verb = next((word for word in arguments if re.fullmatch("[a-z][a-z-]+", word)), "")
    if "dubious ownership" in said:
        return BadInputError(
            f"git refuses to work in {where}: it belongs to another user",
            evidence=said.splitlines()[0],
            hints=[f"if you trust it: `git config --global --add safe.directory {where.absolute()}`"],
        )
    if "not a git repository" in said:
        return BadInputError(
            f"{where} is not in a git repository, and runs start from a commit",
            evidence=said,
            hints=["`git init`, list what is no code in .gitignore, then `git add -A` and `git commit`"],
        )
    if re.search("No space left|Read-only file system|insufficient permission|Unable to create", said):
        return EnvironmentUnfitError(f"git cannot write the snapshot in {where}", evidence=said)
    if re.search("[Nn]ot a valid object|not a tree object|bad object|invalid object|unable to read tree", said):
        return BadInputError(
            f"the code of this run is not in the repository at {where}",
            evidence=said,
            hints=[
                "use the repository that the run was started from",
                "`git fetch origin 'refs/repro/*:refs/repro/*'`",
            ],
        )
    hints = ["list in .gitignore what cannot be read or is no code"] if verb == "add" else []
    return BadInputError(f"`git {verb}` failed in {where}", evidence=said[-2000:], hints=hints)


def open_repository(root: Path) -> Repository:
    """The repository around `root`, by one call of git.

    Raises:
        BadInputError: there is none, it has no working tree, or git refuses to work in it.
    """
    asked = ("--absolute-git-dir", "--git-common-dir", "--show-prefix", "--show-toplevel")
    try:
        answer = git(root, "rev-parse", *asked, "HEAD", "HEAD^{tree}", "--symbolic-full-name", "HEAD", "--")
    except BadInputError as error:
        said = "".join(error.evidence)
        if "must be run in a work tree" in said:
            raise BadInputError(
                f"{root} has no working tree: it is a bare repository or a .git folder",
                hints=["start from a clone: `git clone` this repository"],
            ) from error
        if "bad revision 'HEAD'" not in said:
            raise
        # No commit yet
        answer = git(root, "rev-parse", *asked) + b"\n\n" + git(root, "symbolic-ref", "HEAD")
    lines = os.fsdecode(answer).removesuffix("--\n").removesuffix("\n").split("\n")
    if len(lines) != 7:
        raise BadInputError(f"the path of {root} holds a line break", hints=["rename the folder"])
    git_dir, common_dir, prefix, top, head, tree, full_name = lines
    return Repository(
        top=Path(top),
        git_dir=Path(git_dir),
        common_dir=(root.resolve() / common_dir).resolve(),
        prefix=prefix,
        head=head,
        tree=tree,
        branch=shown(full_name.removeprefix("refs/heads/")) if full_name.startswith("refs/") else None,
    )


def bare_repository(place: Path) -> Repository:
    """A repository without a working tree, as `git init --bare` makes one."""
    return Repository(top=place, git_dir=place, common_dir=place, prefix="", head="", tree="", branch=None, bare=True)


def remote(repository: Repository) -> str | None:
    """The URL of `origin` as a record may show it: without user and password."""
    url = os.fsdecode(git(repository.top, "config", "-z", "--get", "remote.origin.url", fine=(0, 1))).rstrip("\0")
    url = re.sub(r"^(https?|ftps?)://[^/]*@", r"\1://", url)  # a token may stand in either place
    url = re.sub(r"^([a-z+]+://[^/@:]*):[^/@]*@", r"\1@", url)  # ssh: the user is part of the address
    return shown(url) or None


def some(names: Iterable[str], most: int = 10) -> list[str]:
    """The first names of many, for an error's evidence."""
    known = [shown(name) for name in names]
    return known[:most] + ([f"... and {len(known) - most} more"] if len(known) > most else [])
