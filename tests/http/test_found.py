"""How another process finds the server that this one runs."""

import pickle
import sys
from types import ModuleType

import pytest

from mlserve import ModelServer
from mlserve.errors import ConfigurationError
from mlserve.http.found import find_variable
from mlserve.testing import EchoHandler

PICKLES = 5


@pytest.fixture
def server() -> ModelServer:
    return ModelServer().add("echo", EchoHandler)


def module_with(server: ModelServer, name: str, **facts: str) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(served=server, **facts)
    return module


def test_a_server_is_found_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, server: ModelServer
) -> None:
    monkeypatch.setitem(sys.modules, "reviews_4711", module_with(server, "reviews_4711"))

    data = pickle.dumps(find_variable(server), PICKLES)
    found = pickle.loads(data)()  # noqa: S301 - of this test

    assert found.app is server.build()
    assert found.registry is server.registry


@pytest.mark.parametrize(("file", "is_main"), [("main.py", True), (None, False)])
def test_the_main_module_comes_first_if_another_process_can_run_it(
    monkeypatch: pytest.MonkeyPatch, server: ModelServer, file: str | None, is_main: bool
) -> None:
    facts = {"__file__": file} if file is not None else {}
    monkeypatch.setitem(sys.modules, "reviews_4711", module_with(server, "reviews_4711"))
    monkeypatch.setitem(sys.modules, "__main__", module_with(server, "__main__", **facts))

    data = pickle.dumps(find_variable(server), PICKLES)

    assert (b"__main__" in data) is is_main
    assert (b"reviews_4711" in data) is not is_main


def test_a_server_that_no_module_holds_is_refused(server: ModelServer) -> None:
    with pytest.raises(ConfigurationError, match="make it a variable of a module"):
        find_variable(server)
