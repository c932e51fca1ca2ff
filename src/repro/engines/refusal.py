"""What an engine refuses, in its own words -> an error that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from repro.errors import EnvironmentUnfitError, ReproError

STARTER = "/repro/inside/bin/repro-start"  # what becomes the command when there is a time limit or a secret


class GpuRefusedError(EnvironmentUnfitError):
    """The engine cannot give the GPUs that were asked for."""


class ContainerGoneError(EnvironmentUnfitError):
    """The engine knows the container no more: somebody removed it."""


class CommandNotFoundError(ReproError):
    """The image does not hold the program that the experiment names."""


@contextmanager
def of_create() -> Iterator[None]:
    """Say what to do about what an engine refuses to create."""
    try:
        yield
    except EnvironmentUnfitError as error:
        text = "\n".join(error.evidence)
        if "catatonit" not in text and "init binary" not in text:
            raise
        raise EnvironmentUnfitError(
            "Podman cannot give the container an init process, without which it could not be stopped in order",
            evidence=[text],
            hints=["install it where the engine runs: `sudo apt-get install catatonit` (dnf, zypper: the same name)"],
        ) from error


def gpus_ignored(engine: str) -> GpuRefusedError:
    """The error for an engine that would run a container without the GPUs that it asks for, and say nothing."""
    return GpuRefusedError(
        "the engine cannot give the container the GPUs that were asked for",
        evidence=[f"{engine} ignores requests for GPUs that come through Docker's API"],
        hints=[
            "Podman 5 with CDI gives them: `sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`",
            "or use Docker with the NVIDIA Container Toolkit; on the CPU: `gpus=none`",
        ],
    )


def of_start(error: EnvironmentUnfitError) -> ReproError:
    """What an engine's refusal to start means; the texts are those of Docker 20.10 to 28 with runc."""
    text = "\n".join(error.evidence)
    if "could not select device driver" in text or "nvidia-container-cli" in text or "CDI device" in text:
        return GpuRefusedError(
            "the engine cannot give the container the GPUs that were asked for",
            evidence=[text],
            hints=[
                "install NVIDIA's driver and the NVIDIA Container Toolkit, restart Docker, try `nvidia-smi`",
                "ask for fewer or other GPUs (`gpus=1`, `gpus=[0]`), or run on the CPU: `gpus=none`",
            ],
        )
    if "executable file not found" in text or ("exec:" in text and "no such file" in text):
        return command_not_found(text)
    return error


def command_not_found(text: str) -> CommandNotFoundError:
    """The error for a command that the image does not hold; `text` is what the engine, its init or our starter says."""
    if f"{STARTER} failed" in text:
        return CommandNotFoundError(
            "the image holds no /bin/sh, which a time limit and secrets in the environment need",
            evidence=[text],
            hints=[
                "add a shell, `sleep` and `cat` to the image (busybox has all three)",
                "or do without: resources.time_limit=null, and secrets as files (leave `to: env` out)",
            ],
        )
    if text.startswith(f"{STARTER}: ") and ": exec: " not in text:
        return CommandNotFoundError(
            "the experiment's command cannot be started in this image",
            evidence=[text],
            hints=["look inside: `repro shell experiment=NAME`", "install what is missing in the Dockerfile"],
        )
    return CommandNotFoundError(
        "the experiment's command cannot be started: the image does not hold that program",
        evidence=[text],
        hints=["look inside: `repro shell experiment=NAME`", "install it in the Dockerfile, or correct `command`"],
    )
