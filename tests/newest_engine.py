"""The newest Docker Engine that Debian has, as a second engine, with either of its image stores.

`image id` means another thing in each store: a test of identities has to see both.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tests.debian import fetched
from tests.second_engine import SecondEngine, require_root, second_engine

Store = Literal["overlay2", "containerd"]
STORES: tuple[Store, ...] = ("overlay2", "containerd")


def programs() -> Path:
    """A folder with the engine's programs and a `docker` of the same age; put it first on PATH."""
    root = fetched("engine", "docker.io", "containerd", "docker-cli", "tini")
    folder = root.parent / "programs"
    folder.mkdir(exist_ok=True)
    for program in (*(root / "usr" / "sbin").iterdir(), *(root / "usr" / "bin").iterdir()):
        link = folder / program.name
        if not link.is_symlink():
            link.symlink_to(program)
    # the machine's own: a newer one needs a newer C library
    assert shutil.which("runc"), "runc is not installed: scripts/engine-up.sh installs it with docker.io"
    return folder


@contextmanager
def newest_engine(
    store: Store, *, options: Mapping[str, Any] | None = None, host_network: bool = False
) -> Iterator[SecondEngine]:
    """A started engine with this store; everything of it is gone afterwards. `options`: more of its daemon.json.

    With `host_network` it reaches what listens on this machine, such as a registry at localhost.
    """
    require_root()
    wanted = {**(options or {}), **({"features": {"containerd-snapshotter": True}} if store == "containerd" else {})}
    path = os.pathsep.join([str(programs()), os.environ.get("PATH", os.defpath)])
    with second_engine(gpus=None, options=wanted, path=path, host_network=host_network) as engine:
        yield engine
