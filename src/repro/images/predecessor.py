"""The image that a spec takes the place of, and what has changed since."""

from __future__ import annotations

from datetime import datetime

from repro import report
from repro.engines.answers import time_of
from repro.engines.engine import Engine
from repro.engines.imagefacts import ImageFacts
from repro.experiment import Value
from repro.image import MANIFEST_LABEL, SPEC_LABEL, moved
from repro.lockfile import Lock
from repro.recipe import explain, inputs
from repro.recipe.explain import Change
from repro.recipe.inputs import Inputs
from repro.recipe.spec import ImageSpec

NOTHING = "there is no earlier image here to compare with"
SILENT = "it does not say what it was made from"


class Since(Value, frozen=True, kw_only=True):
    """What a spec is compared with."""

    tag: str
    id: str
    created: datetime
    why: str  # this image and no other


class Explanation(Value, frozen=True, kw_only=True):
    """Why an image has to be built, or that it need not be."""

    since: Since | None  # None: there is nothing to compare with
    changes: tuple[Change, ...] | None  # None: what there is does not say what it was made from

    def lines(self, now: datetime) -> list[str]:
        """The explanation for people."""
        if self.since is None:
            return [NOTHING]
        since = f"since {self.since.tag} ({report.age(self.since.created, now)} old, {self.since.why})"
        if self.changes is None:
            return [f"{since}: {SILENT}"]
        if not self.changes:
            return [f"{since}: nothing changed"]
        return [f"{since}:", *(f"  {change.text}" for change in self.changes)]

    def first(self) -> str:
        """The explanation in one line: the first change, and how many more there are."""
        if self.since is None:
            return NOTHING
        if not self.changes:
            return f"{self.since.tag} is another one, and {SILENT}"
        more = f", and {report.many(len(self.changes) - 1, 'more change')}" if len(self.changes) > 1 else ""
        return f"{self.changes[0].text}{more}, since {self.since.tag}"


def itself(spec: ImageSpec, found: ImageFacts) -> Explanation:
    """What there is to explain of an image that is there."""
    return _explanation(spec, found, "the same")


def explained(spec: ImageSpec, engine: Engine, lock: Lock) -> Explanation:
    """What changed since the image that the lock names, or else since the newest that was built here."""
    chosen = _locked(spec, engine, lock) or _newest(spec, engine)
    return _explanation(spec, *chosen) if chosen else Explanation(since=None, changes=None)


def _explanation(spec: ImageSpec, found: ImageFacts, why: str) -> Explanation:
    since = Since(tag=_tag(found, spec.name), id=found.id, created=time_of(found.created), why=why)
    if found.labels[SPEC_LABEL] == spec.digest:
        # what no registry has is no part of the hash, but the lock names the one that is meant
        others = [
            Change(input="repro.lock", what=reference, before=used, after=wanted)
            for reference, used, wanted in moved(spec, found)
        ]
        return Explanation(since=since, changes=tuple(others))
    then = _inputs(found)
    return Explanation(since=since, changes=None if then is None else explain.changes(then, inputs.of_spec(spec)))


def _locked(spec: ImageSpec, engine: Engine, lock: Lock) -> tuple[ImageFacts, str] | None:
    entry = lock.images.get(spec.variant)
    for reference in (entry.id, f"{spec.name}:{entry.spec[:16]}") if entry else ():
        found = engine.image(reference) if reference else None
        if found and entry and found.labels.get(SPEC_LABEL) == entry.spec:
            return found, f"repro.lock names it for {spec.variant}"
    return None


def _newest(spec: ImageSpec, engine: Engine) -> tuple[ImageFacts, str] | None:
    """Of the same name and Dockerfile; of what is not whole yet there is another tag."""
    alike = []
    for found in engine.images(SPEC_LABEL):
        then = _inputs(found) if f"{spec.name}:{found.labels[SPEC_LABEL][:16]}" in found.tags else None
        if then and then.manifest.get("dockerfile") == spec.dockerfile:
            alike.append(found)
    newest = max(alike, key=lambda found: time_of(found.created), default=None)
    return (newest, f"the newest of {spec.name} here") if newest else None


def _inputs(found: ImageFacts) -> Inputs | None:
    return inputs.read(found.labels.get(MANIFEST_LABEL, ""))


def _tag(found: ImageFacts, name: str) -> str:
    own = f"{name}:{found.labels[SPEC_LABEL][:16]}"
    return own if own in found.tags else next(iter(found.tags), found.id)
