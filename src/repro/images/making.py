"""What every command that builds an image does alike: gather for its build, and say where its log goes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from repro import image
from repro.display import Display
from repro.download import Say
from repro.engines.engine import Engine
from repro.experiment import BuildConfig
from repro.image import Image
from repro.project import Project, cache_folder, ignored_folder
from repro.recipe import assembly
from repro.recipe.assembly import FromHost
from repro.recipe.spec import ImageSpec


class Making:
    """The builds of one spec in a project."""

    def __init__(self, spec: ImageSpec, build: BuildConfig, project: Project, display: Display) -> None:
        self.spec, self.project = spec, project
        self.gather: Callable[[Say], FromHost] = partial(
            assembly.gather, spec, build, project.root, cache_folder(), progress=display.live
        )

    def ensure(self, engine: Engine, say: Say, *, no_cache: bool = False, pull_base: bool = False) -> Image:
        """As `image.ensure`, with a log in the project's own folder."""
        return image.ensure(
            self.spec,
            engine,
            say=say,
            build_log=ignored_folder(self.project.scratch) / "logs" / f"build-{self.spec.digest[:16]}.log",
            no_cache=no_cache,
            pull_base=pull_base,
            gather=partial(self.gather, say),
        )
