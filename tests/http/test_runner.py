"""How uvicorn is set up: it waits a little longer than the models drain, and may end at once."""

import math
import signal
from typing import Any

import pytest
import uvicorn

from mlserve import ModelServer, ServerSettings
from mlserve.http import runner
from mlserve.testing import EchoHandler


@pytest.mark.parametrize(
    ("drain_s", "bound_s"), [(0.5, 6), (30.0, 35), (math.inf, None), (1e300, None)]
)
def test_connections_are_waited_for_a_little_longer_than_models_drain(
    monkeypatch: pytest.MonkeyPatch, drain_s: float, bound_s: int | None
) -> None:
    configs: list[uvicorn.Config] = []

    def serve(server: Any) -> None:
        configs.append(server.config)
        server.started = True

    monkeypatch.setattr(runner._Server, "run", serve)
    monkeypatch.setattr(runner, "configure_logging", lambda level: None)

    ModelServer(settings=ServerSettings(drain_s=drain_s)).add("echo", EchoHandler).run(port=0)

    assert [config.timeout_graceful_shutdown for config in configs] == [bound_s]


def test_a_signal_that_comes_before_the_event_loop_runs_ends_the_start() -> None:
    loaded: list[str] = []

    class Noting(EchoHandler):
        def load(self) -> None:
            loaded.append("load")

    server = ModelServer().add("noting", Noting)
    config = runner.make_config(server.build(), server.registry, port=0)
    process = runner._Server(config, server.registry)

    process.handle_exit(signal.SIGTERM, None)
    process.run()

    assert process.is_ending
    assert not process.started
    assert loaded == []
