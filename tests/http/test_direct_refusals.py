"""What a model that takes no work answers on the short way and on the ordinary one."""

import logging
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import pytest
from fastapi import Depends
from starlette.middleware import Middleware
from tests.http.direct_models import KEY, KEYS, request_to
from tests.http.waiting import until
from tests.http.ways import DIRECT, ORDINARY, Place, lines_of, places

from mlserve import Batching, Limits, ModelHandler, ModelServer, ServerSettings, api_keys
from mlserve.records import InferenceRecord

pytestmark = pytest.mark.slow

JSON = b"Content-Type: application/json"
WITH_KEY = b"X-API-Key: " + KEY.encode()
N_QUEUED = 12
NUMBER = re.compile(rb'"retry_after_s": [0-9.]+|[0-9.]+ s\b')


class Holding(ModelHandler[str, str]):
    """Holds "hold" until it may go, and takes its time for "slow"."""

    batching = Batching(max_size=1)
    may_go: ClassVar[threading.Event] = threading.Event()
    holds: ClassVar[threading.Event] = threading.Event()

    def infer(self, inputs: list[str]) -> list[str]:
        if inputs == ["hold"]:
            self.holds.set()
            assert self.may_go.wait(15)
        elif inputs == ["slow"]:
            threading.Event().wait(0.03)  # stands for a model that takes its time
        return inputs


class Loading(Holding):
    def load(self) -> None:
        assert self.may_go.wait(15)


class Failing(Holding):
    def load(self) -> None:
        raise RuntimeError("internal")


KINDS = {
    "crowded": Holding,
    "loading": Loading,
    "failed": Failing,
    "draining": Holding,
}
CODES = {
    "crowded": "queue_full",
    "loading": "model_not_ready",
    "failed": "model_failed",
    "draining": "draining",
}
HEADS = {
    "good": (JSON,),
    "no type": (),
    "gzip": (JSON, b"Content-Encoding: gzip"),
    "malformed timeout": (JSON, b"X-Request-Timeout: soon"),
    "malformed timeout, no type": (b"X-Request-Timeout: soon",),
    "last": (JSON, b"Connection: close"),
    "urgent": (JSON, b"X-Request-Priority: 0"),
    "malformed priority": (JSON, b"X-Request-Priority: first"),
}


def server_of(records: list[InferenceRecord], middleware: list[Middleware]) -> ModelServer:
    settings = ServerSettings(on_load_failure="serve", startup_wait_s=0.0)
    server = ModelServer(settings=settings, middleware=middleware)
    for name, kind in (*KINDS.items(), ("hurried", Holding)):
        limits = Limits(max_queue_size=40 if name == "hurried" else N_QUEUED, priorities=True)
        server.add(name, kind, limits=limits)
        server.add(f"{name}-guarded", kind, limits=limits, dependencies=[Depends(api_keys(KEYS))])
    return server


@contextmanager
def crowded(place: Place, name: str) -> Iterator[None]:
    """Have one request run and no more room in the queue for this key, until the block's end."""
    n_queued = N_QUEUED - ("guarded" in name)  # a key never has the last place
    model = place.models.model_for(name)
    path, headers = f"/v1/models/{name}/predict", {"X-API-Key": KEY}

    def post(text: str) -> int:
        return place.client.post(path, json=text, headers=headers).status_code

    until(lambda: model.state == "ready")
    with ThreadPoolExecutor(N_QUEUED + 1) as pool:
        Holding.holds.clear()
        held = [pool.submit(post, "hold")]
        assert Holding.holds.wait(10)
        held += [pool.submit(post, "wait") for _ in range(n_queued)]
        until(lambda: model.statistics().queued == n_queued)
        yield
        Holding.may_go.set()
        assert [future.result(10) for future in held] == [200] * len(held)


@pytest.fixture(scope="module")
def both() -> Iterator[dict[str, Place]]:
    Holding.may_go.clear()
    with places(server_of, DIRECT, ORDINARY, wait_ready=False) as found, ExitStack() as stack:
        stack.callback(Holding.may_go.set)
        for place in found.values():
            for name in ("crowded", "crowded-guarded"):
                stack.enter_context(crowded(place, name))
            for name in ("draining", "draining-guarded"):
                model = place.models.model_for(name)
                until(lambda model=model: model.state == "ready")  # type: ignore[misc]
                model.engine.refuse_new_work()
        yield found


def answer_line(caplog: pytest.LogCaptureFixture, request_id: str) -> dict[str, Any] | None:
    found = [line for line in lines_of(caplog) if line["request_id"] == request_id]
    assert len(found) < 2
    return found[0] if found else None


def seen(place: Place, request: bytes, caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """Say what can be seen of a refusal, but for how long to wait, which nobody can foretell."""
    caplog.clear()
    asked = place.ask(request)
    answer = asked.comparable()
    until(lambda: answer_line(caplog, asked.id) is not None)
    line = answer_line(caplog, asked.id) or {}
    return {
        "status": answer.status,
        "headers": [name for name, _ in answer.headers],
        "body": NUMBER.sub(b"", answer.body),
        "is last": answer.is_last,
        "line": (line["model"], line["status"], line["code"], line["bytes_in"]),
    }


@pytest.mark.parametrize("guard", ["", "-guarded", "-guarded, without a key"])
@pytest.mark.parametrize("name", KINDS)
def test_a_model_that_takes_no_work_says_so_in_the_same_way(
    both: dict[str, Place], caplog: pytest.LogCaptureFixture, name: str, guard: str
) -> None:
    caplog.set_level(logging.INFO, "mlserve.access")
    keys = () if "without" in guard else (WITH_KEY,)
    model = name + guard.partition(",")[0]
    requests = {head: request_to(model, b'"x"', *HEADS[head], *keys) for head in HEADS}

    direct, ordinary = (
        {head: seen(place, request, caplog) for head, request in requests.items()}
        for place in both.values()
    )

    assert direct == ordinary
    assert direct["good"]["line"][1:3] == ((503, CODES[name]) if keys else (401, "unauthorized"))


@pytest.mark.parametrize("name", ["hurried", "hurried-guarded"])
def test_a_turn_that_would_come_too_late_is_refused_in_the_same_way(
    both: dict[str, Place], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.INFO, "mlserve.access")
    hurry = request_to(name, b'"x"', JSON, WITH_KEY, b"X-Request-Timeout: 0.1")

    direct, ordinary = (seen_behind_others(place, name, hurry, caplog) for place in both.values())

    assert direct == ordinary
    assert direct["line"][1:3] == (503, "overloaded")


def seen_behind_others(
    place: Place, name: str, request: bytes, caplog: pytest.LogCaptureFixture
) -> dict[str, Any]:
    """Ask while others wait whose time is known."""
    slow = request_to(name, b'"slow"', JSON, WITH_KEY)
    for _ in range(5):
        place.ask(slow)
    with ThreadPoolExecutor(12) as pool:
        others = [pool.submit(place.ask, slow) for _ in range(12)]
        until(lambda: place.models.model_for(name).statistics().queued >= 8)
        found = seen(place, request, caplog)
        assert {other.result(10).status for other in others} == {200}
    return found
