"""A git remote, as far as runs need one: what refs it has, fetch, push; each way to fail in words, with git's own."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from repro import printable
from repro.code.repository import Repository, git, talk
from repro.errors import BadInputError, EnvironmentUnfitError

Say = Callable[[str], None]

SNAPSHOTS, RUNS = "refs/repro/snap/", "refs/repro/runs/"
RUN = re.compile(r"\d{8}-\d{6}-[A-Za-z0-9][A-Za-z0-9_.-]*-[0-9a-f]{6}")  # what a run of ours is called
REJECTED = re.compile(r"^! \[(remote )?rejected\]|\((fetch first|non-fast-forward|stale info)\)", re.MULTILINE)
MOVED = re.compile(r"\((fetch first|non-fast-forward|stale info|incorrect old value provided|failed to update ref)\)")
NOISE = re.compile(r"^(To |Everything up-to-date|remote: *$|\w[\w ]+: +\d+% |hint: |From | = )")
SHOWN = 20  # lines of git's


class MovedError(EnvironmentUnfitError):
    """Somebody else pushed the same ref since we looked."""


def ref_of(run: str) -> str:
    """The ref of a run's record. Git refuses two dots in a row, which the name of an experiment may have."""
    return RUNS + run.replace("..", ".%2e")


def runs(refs: Iterable[str]) -> list[str]:
    """The runs of such refs, oldest first. What has no name of a run is none, and is never a path here."""
    found = (ref.removeprefix(RUNS).replace("%2e", ".") for ref in refs if ref.startswith(RUNS))
    return sorted(run for run in found if RUN.fullmatch(run))


class Remote:
    """A remote of a repository by its name, or by its address."""

    def __init__(self, repository: Repository, name: str) -> None:
        """Raises BadInputError: it is neither the name of a remote nor an address."""
        self.repository, self._name = repository, name
        known = os.fsdecode(git(repository.top, "remote")).split("\n")[:-1]
        if name.startswith("-") or not (name in known or re.search("[/:]", name)):
            raise BadInputError(
                f"this repository has no remote {name!r}",
                evidence=[f"it has {', '.join(known) or 'none'}"],
                hints=["`git remote add NAME URL`, or name another one: --remote NAME"],
            )
        self.named = name in known
        url = os.fsdecode(git(repository.top, "remote", "get-url", "--push", name)).strip() if self.named else name
        local = not re.match(r"[\w+.-]+(::|://)|[^/]*:", url)  # a folder of this machine
        self.url = str((repository.top / url).resolve()) if local else url

    def __str__(self) -> str:
        return self._name if self.named else hide(self._name)

    def refs(self, say: Say) -> dict[str, str]:
        """Every ref of it, with its commit.

        Raises:
            EnvironmentUnfitError: it cannot be reached.
        """
        say(f"asking {self}")
        answer = self._talk(self.repository.top, "asked", "ls-remote", "--", self._name, say=say)
        pairs = (line.split("\t", 1) for line in answer.splitlines() if "\t" in line)
        return {ref: commit for commit, ref in pairs if not ref.endswith("^{}")}

    def fetch(self, refs: Iterable[str], say: Say) -> None:
        """Fetch what refs lead to; those of this repository stay as they are, but for snapshots.

        Raises:
            EnvironmentUnfitError: it cannot be reached, or has no such ref.
        """
        specs = [f"{ref}:{ref}" if ref.startswith(SNAPSHOTS) else ref for ref in refs]
        say(f"fetching from {self}")
        options = ("--progress", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head")
        self._talk(self.repository.top, "fetched from", "fetch", *options, "--", self._name, *specs, say=say)

    def push(self, specs: Iterable[str], say: Say, where: Path | None = None) -> None:
        """Push refs, all or none. `where`: from another repository, which need not know this remote.

        Raises:
            MovedError: one of them has become another one meanwhile.
            EnvironmentUnfitError: it cannot be reached, or does not take them.
        """
        say(f"pushing to {self}")
        name = self._name if where is None else self.url
        options = ("--progress", "--no-follow-tags", "--recurse-submodules=no", "--")
        self._talk(
            where or self.repository.top, "pushed to", "push", *options, name, *specs, say=say, hooks=where is None
        )

    def lfs(self, say: Say, *arguments: str) -> None:
        """`git lfs push` or `fetch`, with this remote.

        Raises:
            EnvironmentUnfitError: it cannot be reached, or git-lfs cannot do it.
        """
        self._talk(self.repository.top, "asked for the files of Git LFS", "lfs", *arguments, say=say)

    @property
    def name(self) -> str:
        """As git takes it."""
        return self._name

    def _talk(self, where: Path, done: str, *arguments: str, say: Say, hooks: bool = False) -> str:
        came = talk(where, *arguments, say=say, hooks=hooks)
        if came.code == 0:
            return came.answer
        said = [printable.text(hide(line)) for line in came.said.splitlines() if line and not NOISE.match(line)]
        evidence = said[-SHOWN:] or [f"git ended with {came.code}"]
        if MOVED.search(came.said):
            raise MovedError(f"{self} has changed since it was asked", evidence=evidence, hints=["repeat the command"])
        if REJECTED.search(came.said):
            raise EnvironmentUnfitError(
                f"{self} does not take what was pushed to it",
                evidence=evidence,
                hints=["it has to allow refs below refs/repro/; ask who runs it", "another one: --remote NAME"],
            )
        raise EnvironmentUnfitError(
            f"{self} cannot be {done}", evidence=evidence, hints=[f"`git ls-remote {self}` should answer"]
        )


def hide(text: str) -> str:
    """Text without users and passwords in the addresses that are in it."""
    return re.sub(r"(://)[^/@\s']+@", r"\1***@", text)
