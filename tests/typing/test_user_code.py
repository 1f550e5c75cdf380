"""What the type checker accepts here is accepted when it runs, too."""

from typing import Any

import pytest
from tests.typing import async_handlers, servers, sync_handlers

from mlserve import ModelHandler
from mlserve.contract import read_contract

HANDLERS: list[type[ModelHandler[Any, Any, Any]]] = [
    *(getattr(sync_handlers, name) for name in sync_handlers.__all__),
    *(getattr(async_handlers, name) for name in async_handlers.__all__),
    servers.Scaled,
]


@pytest.mark.parametrize("cls", HANDLERS, ids=lambda cls: cls.__name__)
def test_every_typed_handler_is_accepted(cls: type[ModelHandler[Any, Any, Any]]) -> None:
    contract = read_contract(cls)

    assert contract.can_infer or contract.can_stream


@pytest.mark.parametrize(
    ("cls", "with_call"),
    [
        (sync_handlers.Full, False),
        (sync_handlers.FullWithCall, True),
        (async_handlers.Remote, False),
        (async_handlers.RemoteWithCall, True),
    ],
)
def test_the_call_is_given_to_the_hooks_that_are_typed_with_it(
    cls: type[ModelHandler[Any, Any, Any]], with_call: bool
) -> None:
    hooks = read_contract(cls).hooks
    per_request = ["preprocess", "cost", "batch_key", "infer", "postprocess"]

    assert {hooks[name].wants_call for name in per_request} == {with_call}


def test_the_typed_server_can_be_built() -> None:
    paths = servers.make_app(servers.make_server()).openapi()["paths"]

    assert "/reviews" in paths
