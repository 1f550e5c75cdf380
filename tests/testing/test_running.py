"""The test kit's running server."""

import socket
import threading
from collections.abc import Iterator

import httpx2
import pytest
from fastapi import FastAPI

from mlserve import ModelHandler, ModelServer, ServerSettings
from mlserve.testing import EchoHandler, running

pytestmark = pytest.mark.slow


def test_a_server_runs_on_a_real_socket_until_the_block_is_left() -> None:
    with running(ModelServer().add("echo", EchoHandler)) as client:
        answer = client.post("/v1/models/echo/predict", json={"text": "a"})
        address = client.base_url.host, client.base_url.port or 0

    assert answer.json() == {"text": "a"}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 1)


def test_the_models_are_ready_when_the_block_is_entered() -> None:
    class Slow(EchoHandler):
        def load(self) -> None:
            threading.Event().wait(0.1)

    settings = ServerSettings(startup_wait_s=0)
    with running(ModelServer(settings=settings).add("slow", Slow)) as client:
        assert client.get("/ready").status_code == 200


def test_any_application_can_be_run() -> None:
    app = FastAPI()
    app.add_api_route("/own", lambda: "own")

    with running(app) as client:
        assert client.get("/own").json() == "own"


def test_two_servers_run_side_by_side() -> None:
    servers = [ModelServer().add("echo", EchoHandler) for _ in range(2)]

    with running(servers[0]) as first, running(servers[1]) as second:
        statuses = [client.get("/ready").status_code for client in (first, second)]
        assert first.base_url != second.base_url

    assert statuses == [200, 200]


def test_a_server_can_be_run_again() -> None:
    server = ModelServer().add("echo", EchoHandler)

    for _ in range(2):
        with running(server) as client:
            assert client.get("/ready").status_code == 200


class Broken(ModelHandler[str, str]):
    def load(self) -> None:
        raise OSError("no weights")

    def infer(self, inputs: list[str]) -> list[str]:
        return inputs


@pytest.mark.parametrize(
    "settings",
    [
        ServerSettings(),
        ServerSettings(on_load_failure="serve"),
        ServerSettings(startup_wait_s=0, on_load_failure="serve"),
    ],
    ids=["exit", "serve", "late"],
)
def test_a_server_whose_model_cannot_be_loaded_is_told(settings: ServerSettings) -> None:
    server = ModelServer(settings=settings).add("broken", Broken)

    with pytest.raises(RuntimeError, match=r"did not start|are not ready"), running(server):
        pass
    assert threading.active_count() < 20


def test_a_load_that_takes_too_long_is_told() -> None:
    released = threading.Event()

    class Hanging(Broken):
        def load(self) -> None:
            assert released.wait(10)

    settings = ServerSettings(startup_wait_s=0, drain_s=0)
    server = ModelServer(settings=settings).add("m", Hanging)
    with (
        pytest.raises(RuntimeError, match=r"did not start|not ready"),
        running(server, timeout_s=0.5),
    ):
        pass
    released.set()


def test_what_the_block_raises_is_raised_and_the_server_is_stopped() -> None:
    unloaded = threading.Event()

    class Noting(EchoHandler):
        def unload(self) -> None:
            unloaded.set()

    with pytest.raises(ZeroDivisionError), running(ModelServer().add("m", Noting)):
        _ = 1 / 0
    assert unloaded.is_set()


def test_an_unread_stream_does_not_hold_the_stop_up() -> None:
    closed = threading.Event()

    class Endless(ModelHandler[str, str]):
        def stream(self, item: str) -> Iterator[str]:
            pause = threading.Event()
            try:
                while True:
                    yield item
                    pause.wait(0.01)
            finally:
                closed.set()

    server = ModelServer(settings=ServerSettings(drain_s=0.2)).add("m", Endless)
    with running(server) as client:
        own = httpx2.Client(base_url=client.base_url)
        stream = own.stream("POST", "/v1/models/m/stream", json="x")
        lines = stream.__enter__().iter_lines()
        assert next(lines) == 'data: "x"'

    assert closed.wait(5)
    stream.__exit__(None, None, None)
    own.close()
