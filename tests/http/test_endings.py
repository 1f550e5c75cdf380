"""Requests that end in one turn of the event loop are counted and logged together."""

import asyncio
import json
import logging
from typing import Any

import pytest

from mlserve import ServerSettings
from mlserve.http.endings import Endings
from mlserve.http.exchange import Exchange


def exchange_of(request_id: str, **settings: Any) -> Exchange:
    scope: dict[str, Any] = {"headers": [(b"x-request-id", request_id.encode())]}
    exchange = Exchange(scope, None, ServerSettings(**settings), "m", "v1")
    exchange.respond(200, [], b"")
    return exchange


def ended(*exchanges: Exchange) -> None:
    async def end() -> None:
        endings = Endings()
        for exchange in exchanges:
            endings.add(exchange)
        await asyncio.sleep(0)
        assert repr(endings) == "<Endings of 0 requests>"

    asyncio.run(end())


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record for record in caplog.records if record.name == "mlserve.access"]
    return [json.loads(line.getMessage())["request_id"] for line in lines]


def test_each_has_its_line_in_the_order_of_the_answers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    ended(exchange_of("a"), exchange_of("b"), exchange_of("c"))

    assert logged(caplog) == ["a", "b", "c"]


def test_who_wants_no_access_log_gets_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    ended(exchange_of("a"), exchange_of("b", access_log=False))

    assert logged(caplog) == ["a"]


def test_one_that_cannot_be_ended_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    broken = exchange_of("b")
    broken.metrics = None  # type: ignore[assignment]

    ended(exchange_of("a"), broken, exchange_of("c"))

    assert logged(caplog) == ["a", "c"]
    [failure] = [r for r in caplog.records if r.getMessage() == "request.end.failed"]
    assert vars(failure)["request_id"] == "b"


def test_the_time_of_a_request_ends_with_its_answer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    exchange = exchange_of("a")
    exchange._started -= 100.0

    ended(exchange)

    [line] = [r for r in caplog.records if r.name == "mlserve.access"]
    assert json.loads(line.getMessage())["total_ms"] < 1000
