"""The newest engine is what it says, with each of its stores, and leaves nothing of itself."""

from __future__ import annotations

import socket
import threading
from contextlib import closing

import docker.errors
import pytest

from repro.engines.engine import Engine
from tests.newest_engine import STORES, Store, newest_engine

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("store", STORES)
def test_the_newest_engine_runs_with_either_store(store: Store, debian_base: str) -> None:
    with newest_engine(store) as engine:
        facts = Engine(engine.client(), engine.url).facts()
        assert (facts.store, int(facts.version.split(".")[0]) >= 28) == (store, True)
        image = engine.copy_image(debian_base)
        said = engine.client().containers.run(image, ["echo", "hello"], network_mode="none", remove=True)
        assert said == b"hello\n"


def test_with_the_hosts_network_it_reaches_a_port_of_this_machine_and_the_first_engine_keeps_its_bridge() -> None:
    before = {name for _index, name in socket.if_nameindex()}
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as server,
        newest_engine("containerd", host_network=True) as engine,
    ):
        port = server.getsockname()[1]

        def hang_up() -> None:
            server.accept()[0].close()

        reached = threading.Thread(target=hang_up)
        reached.start()
        with pytest.raises(docker.errors.APIError):
            engine.client().api.pull(f"localhost:{port}/nothing", tag="x")
        reached.join(10)
        assert not reached.is_alive(), "the engine did not come to the registry"
    assert {name for _index, name in socket.if_nameindex()} == before
