"""The Docker engine, through the Docker SDK: the only door to containers. It speaks strings and bytes.

Foreign exceptions become ours here and nowhere else. The SDK is imported when an engine is first asked for.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from typing import Any, BinaryIO

from repro.engines import answers, endpoint, imagefacts, refusal
from repro.engines.answers import ContainerFacts, EngineFacts, Exit, Found, Use
from repro.engines.imagefacts import ImageFacts
from repro.errors import BadInputError, EngineUnreachableError, EnvironmentUnfitError, ReproError
from repro.experiment import Value

SILENT_SECONDS = 3600.0  # that an engine may need for a large image without a word

# Docker's usual form of a container's log changes bytes that are not UTF-8, and may be set to drop old lines;
# `answers.whole_lines` knows what this one loses
LOG_OPTIONS = {"max-size": "1000000g", "max-file": "1", "compress": "false"}
BLOCK = 1 << 16  # bytes
HOSTNAME = "repro"  # else it would be another one in each run, and get into names of files
NO_DEVICE = "repro-asks-whether-requests-count"


class Mount(Value, frozen=True, kw_only=True):
    """A folder or file of the host, seen in the container. The source must exist already."""

    source: str
    target: str
    read_only: bool = True


class ContainerSpec(Value, frozen=True, kw_only=True):
    """Everything that a container is created from; sizes in bytes."""

    image: str  # immutable id, never a tag
    name: str
    command: tuple[str, ...]
    env: dict[str, str]
    labels: dict[str, str]
    user: str
    workdir: str
    mounts: tuple[Mount, ...]
    tmpfs: dict[str, str]  # target -> mount options
    network: str
    gpus: tuple[str, ...] | int  # ids; a number (-1: all); () for none
    cpus: float | None
    memory: int | None
    shm: int
    pids: int
    stop_signal: str
    capabilities: tuple[str, ...] = ()  # all others are dropped
    interactive: bool = False
    entrypoint: tuple[str, ...] | None = None  # None: the image's


def connect(host: str | None = None, timeout: int = 60) -> Engine:
    """The engine at `host`; without one that of DOCKER_HOST, of the current Docker context, or of the default socket.

    Raises:
        EngineUnreachableError: none answers there.
        BadInputError: the credentials in the Docker configuration are damaged, which the SDK reads at once.
    """
    import docker

    host = host or endpoint.host()
    try:
        client = docker.from_env(timeout=timeout, environment={**os.environ, "DOCKER_HOST": host})
        client.ping()
    except Exception as error:
        if isinstance(error, ValueError) and not isinstance(error, OSError):
            raise BadInputError(
                "the Docker configuration has credentials that cannot be read",
                evidence=[str(error)],
                hints=[
                    "`docker logout` and `docker login` write them anew, in ~/.docker/config.json or $DOCKER_CONFIG"
                ],
            ) from None
        raise endpoint.unreachable(host, error) from error
    return Engine(client, host)


@contextmanager
def _of_container(action: str) -> Iterator[None]:
    """`translated`, for what is asked of one container: it may have been removed."""
    import docker.errors

    with translated(action):
        try:
            yield
        except docker.errors.NotFound as error:
            raise refusal.ContainerGoneError(f"{action} failed: it is gone", evidence=[_explanation(error)]) from error


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn the SDK's and the connection's exceptions inside the block into ours; `action` starts the sentence."""
    import docker.errors
    import requests
    import urllib3

    try:
        yield
    except docker.errors.APIError as error:
        raise EnvironmentUnfitError(f"{action} failed", evidence=[_explanation(error)]) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError, EOFError) as error:
        raise EngineUnreachableError(
            f"{action} failed: the engine does not answer any more",
            evidence=[str(error)],
            hints=["look at the engine: `sudo systemctl status docker`, then repeat the command"],
        ) from error


def _explanation(error: Any) -> str:
    return str(error.explanation or error)


class Engine:
    """One engine, connected."""

    def __init__(self, client: Any, host: str) -> None:
        self.client = client  # docker.DockerClient; `builder`, `probe` and `registry` share it, nobody else
        self.host_url = host

    def facts(self) -> EngineFacts:
        """What the engine says of itself."""
        with translated("asking the engine about itself"):
            return answers.engine_facts(self.client.info(), self.version)

    @cached_property
    def id(self) -> str:
        """Of this engine's state: another one does not know its containers; "" where engines have none."""
        with translated("asking the engine about itself"):
            return str(self.client.info().get("ID") or "")

    @cached_property
    def version(self) -> dict[str, Any]:
        """The engine's answer to `/version`."""
        with translated("asking the engine about itself"):
            return dict(self.client.version())

    @property
    def podman(self) -> bool:
        """Whether this is Podman behind Docker's API."""
        return answers.is_podman(self.version)

    # images ------------------------------------------------------------------------------------------------

    def image(self, ref: str) -> ImageFacts | None:
        """The image of this tag, id or digest; None when the engine has none."""
        import docker.errors

        with translated(f"looking for image {ref}"):
            try:
                found = self.client.api.inspect_image(ref)
            except docker.errors.ImageNotFound:
                return None
            return self._image_facts(found)

    def _image_facts(self, found: dict[str, Any]) -> ImageFacts:
        if not imagefacts.is_index(found):
            return imagefacts.of(found, podman=self.podman)
        api = self.client.api  # the SDK has no word for this parameter
        answer = api._get(api._url("/images/{0}/json", found["Id"]), params={"manifests": "1"})
        return imagefacts.of(found, api._result(answer, json=True).get("Manifests") or ())

    def images(self, label: str | None = None) -> list[ImageFacts]:
        """The images that carry a label, as `key` or `key=value`; without one, every image."""
        with translated("listing images"):
            found = self.client.api.images(filters={"label": label} if label else None)
        details = (self.image(each["Id"]) for each in found)
        return [each for each in details if each]  # one may have been removed meanwhile

    def layer_sizes(self, ref: str) -> tuple[int, ...]:
        """Bytes of each step of an image that has any, from the first; not every layer has."""
        with translated(f"looking into image {ref}"):
            return tuple(step["Size"] for step in reversed(self.client.api.history(ref)) if step.get("Size"))

    def tag(self, ref: str, tag: str) -> None:
        """Let `tag` (name:tag) point to the image `ref`."""
        name, _, version = tag.rpartition(":")
        with translated(f"tagging image {tag}"):
            self.client.api.tag(ref, name, version)

    def remove_image(self, ref: str, *, force: bool = False) -> None:
        """Remove a tag, and the image with its last tag."""
        with translated(f"removing image {ref}"):
            self.client.api.remove_image(ref, force=force)

    @contextmanager
    def patient(self) -> Iterator[Any]:
        """The SDK's client for what takes long: old engines collect a whole image before they send its first byte."""
        api = self.client.api
        usual, api.timeout = api.timeout, SILENT_SECONDS
        try:
            yield api
        finally:
            api.timeout = usual

    def load(self, tar: BinaryIO) -> str:
        """Load an image archive (`docker save`'s format); the id of its image.

        Raises:
            EnvironmentUnfitError: the engine finds no image in it, or cannot take it.
        """
        import docker.errors

        with translated("loading an image"), self.patient():
            try:
                images = self.client.images.load(tar)
            except docker.errors.ImageLoadError as error:
                raise EnvironmentUnfitError("the engine could not load the image", evidence=[str(error)]) from error
        if not images:
            raise EnvironmentUnfitError("the engine found no image in the archive")
        return str(images[0].id)

    def save(self, ref: str) -> Iterator[bytes]:
        """`docker save` of an image, in pieces."""
        with translated(f"saving image {ref}"):
            with self.patient() as api:
                chunks = api.get_image(ref)
            yield from chunks

    # containers --------------------------------------------------------------------------------------------

    def create(self, spec: ContainerSpec) -> str:
        """Create, not start, a container; its id.

        Raises:
            GpuRefusedError: the engine would take its wish for GPUs and ignore it.
            EnvironmentUnfitError: the engine refuses it.
        """
        from docker.types import LogConfig
        from docker.types import Mount as EngineMount

        api = self.client.api
        requests = self._gpu_requests(spec) if spec.gpus else None
        with refusal.of_create(), translated("creating the container"):
            host = api.create_host_config(
                mounts=[EngineMount(m.target, m.source, type="bind", read_only=m.read_only) for m in spec.mounts],
                tmpfs=spec.tmpfs,
                network_mode=spec.network,
                device_requests=requests,
                nano_cpus=int(spec.cpus * 1e9) if spec.cpus else None,
                mem_limit=spec.memory,
                memswap_limit=spec.memory,
                shm_size=spec.shm,
                pids_limit=spec.pids,
                read_only=True,
                cap_drop=["ALL"],
                cap_add=list(spec.capabilities) or None,
                security_opt=["no-new-privileges:true"],
                init=True,
                log_config=None if self.podman else LogConfig(type="local", config=LOG_OPTIONS),
            )
            made = api.create_container(
                spec.image,
                list(spec.command),
                name=spec.name,
                hostname=None if spec.network == "host" else HOSTNAME,
                entrypoint=list(spec.entrypoint) if spec.entrypoint else None,
                environment=spec.env,
                labels=spec.labels,
                user=spec.user,
                working_dir=spec.workdir,
                host_config=host,
                tty=spec.interactive,
                stdin_open=spec.interactive,
                stop_signal=spec.stop_signal,
            )
        return str(made["Id"])

    def _gpu_requests(self, spec: ContainerSpec) -> list[Any]:
        from docker.types import DeviceRequest

        facts = self.facts()
        if facts.podman:
            self._require_cdi(spec.image, facts)
        if facts.podman or facts.gpus == "cdi":
            return [DeviceRequest(driver="cdi", device_ids=answers.cdi_names(spec.gpus))]
        wanted = {"count": spec.gpus} if isinstance(spec.gpus, int) else {"device_ids": list(spec.gpus)}
        return [DeviceRequest(capabilities=[["gpu"]], **wanted)]

    def _require_cdi(self, image: str, facts: EngineFacts) -> None:
        """Whether a request reaches Podman's devices: one that cannot be met must be refused, and is ignored before 5.

        Raises:
            GpuRefusedError: it is ignored.
        """
        import docker.errors
        from docker.types import DeviceRequest

        api = self.client.api
        request = DeviceRequest(driver="cdi", device_ids=[NO_DEVICE])
        with translated("asking for GPUs"):
            try:
                host = api.create_host_config(device_requests=[request], network_mode="none")
                made = api.create_container(image, ["true"], host_config=host)
            except docker.errors.APIError as error:
                if NO_DEVICE in _explanation(error):
                    return
                raise
        self.remove(str(made["Id"]))
        raise refusal.gpus_ignored(f"{facts.product} {facts.version}")

    def start(self, container: str) -> None:
        """Start a created container.

        Raises:
            GpuRefusedError: the GPUs that its spec asks for cannot be had.
            CommandNotFoundError: the image has no such program.
            EnvironmentUnfitError: the engine cannot start it for another reason.
        """
        try:
            with translated("starting the container"):
                self.client.api.start(container)
        except EngineUnreachableError:
            raise
        except EnvironmentUnfitError as error:
            raise refusal.of_start(error) from error

    def output(self, container: str, *, follow: bool) -> Iterator[bytes]:
        """The container's stdout and stderr from its beginning, in chunks: to now, or with `follow` as they come."""
        split = answers.splits_lines(self.version)
        with _of_container("reading the container's output"):
            groups = answers.frames(self._blocks(container, follow=follow, timestamps=split))
            for group in answers.whole_lines(groups) if split else groups:
                yield b"".join(group)

    def _blocks(self, container: str, **asked: bool) -> Iterator[bytes]:
        """The answer as it arrives. The SDK's own reading takes it apart at a few MB a second."""
        api = self.client.api
        params = {"stdout": 1, "stderr": 1, **{name: int(value) for name, value in asked.items()}}
        answer = api._get(api._url("/containers/{0}/logs", container), params=params, stream=True)
        with contextlib.closing(answer):
            api._raise_for_status(answer)
            api._disable_socket_timeout(api._get_raw_response_socket(answer))
            yield from answer.raw.stream(BLOCK, decode_content=False)

    def wait(self, container: str, timeout: float | None = None) -> Exit | None:
        """How the container ended; None when it still runs after `timeout` seconds."""
        import requests

        with _of_container("waiting for the container"):
            try:
                self.client.api.wait(container, timeout=timeout)
            except (requests.ReadTimeout, requests.ConnectionError) as error:
                if timeout is None or "timed out" not in str(error):
                    raise
                return None
            return self.exit(container)

    def find(self, container: str) -> Found | None:
        """The container of this name or id; None when there is none."""
        with suppress(refusal.ContainerGoneError), _of_container("looking for the container"):
            return answers.found(self.client.api.inspect_container(container))
        return None

    def signals(self, container: str, *, since: datetime) -> tuple[str, ...] | None:
        """The signals that the engine was asked to send to a container which is over, as numbers or names.

        None when it does not remember, as after its own restart.
        """
        span = {"since": f"{since.timestamp():.6f}", "until": f"{time.time():.6f}"}  # as datetimes they lose fractions
        filters = {"container": container, "event": ["kill", "die"]}
        with suppress(ReproError), translated("asking for the engine's events"):
            events = list(self.client.api.events(**span, filters=filters, decode=True))
            known = [event["Action"] for event in events]
            sent = [event["Actor"]["Attributes"].get("signal", "") for event in events if event["Action"] == "kill"]
            return tuple(sent) if sent or "die" in known or "died" in known else None
        return None

    def exit(self, container: str) -> Exit | None:
        """How the container ended, from its state; None while it runs."""
        with _of_container("inspecting the container"):
            state = self.client.api.inspect_container(container)["State"]
        return answers.exit_of(state, podman=self.podman)

    def use(self, container: str) -> Use | None:
        """What the container uses now, in one request that waits for nothing; None when it does not run."""
        with _of_container("asking what the container uses"):
            # engines before 20.10 take two seconds for it
            quick = {"one_shot": True} if answers.at_least(self.client.api.api_version, 1, 41) else {}
            return answers.container_use(self.client.api.stats(container, stream=False, **quick))

    def stop(self, container: str, grace: float) -> None:
        """Ask the container to end, by its stop signal, and kill it `grace` seconds later."""
        with _of_container("stopping the container"):
            self.client.api.stop(container, timeout=math.ceil(grace))

    def kill(self, container: str) -> None:
        """End the container at once; no error when it is over already."""
        import docker.errors

        with translated("killing the container"):
            try:
                self.client.api.kill(container)
            except docker.errors.APIError as error:
                if error.response is None or error.response.status_code not in (404, 409):
                    raise

    def remove(self, container: str) -> None:
        """Remove the container, also a running one; no error when it is gone already."""
        import docker.errors

        with translated("removing the container"):
            try:
                self.client.api.remove_container(container, force=True)
            except docker.errors.APIError as error:
                if error.response is None or error.response.status_code not in (404, 409):  # 409: being removed
                    raise

    def all_containers(self) -> list[ContainerFacts]:
        """Every container, running or not, whoever made it."""
        with translated("listing containers"):
            return [answers.container_facts(each) for each in self.client.api.containers(all=True)]

    def mounted(self, container: str) -> set[str]:
        """The host's folders and files that a container sees; none when it is gone."""
        with suppress(refusal.ContainerGoneError), _of_container("inspecting the container"):
            mounts = self.client.api.inspect_container(container).get("Mounts") or []
            return {str(mount.get("Source", "")) for mount in mounts}
        return set()

    def attach(self, container: str) -> Any:
        """A raw, two-way socket to the terminal of an interactive container that has not started yet.

        Of one that runs already, what it said together with the answer's headers would be lost.
        """
        with translated("attaching to the container"):
            stream = self.client.api.attach_socket(
                container, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            )
        return getattr(stream, "_sock", stream)  # unix sockets come wrapped in a reader

    def resize(self, container: str, rows: int, columns: int) -> None:
        """Tell the container's terminal how large the user's is; no error when the container is over already."""
        import docker.errors

        with translated("resizing the terminal"), suppress(docker.errors.APIError):
            self.client.api.resize(container, height=rows, width=columns)
