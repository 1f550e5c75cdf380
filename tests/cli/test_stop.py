"""
Stopping a server amid its requests, under `mlserve run` and under plain uvicorn.

uvicorn closes idle connections at once and knows neither a grace nor a drain: what it cannot keep
is asked of `mlserve run` alone.
"""

import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals

import pytest
from tests.cli.projects import Served
from tests.cli.stopping import (
    SERVERS,
    Caller,
    Server,
    asking,
    events_of,
    outcome_of,
    predicting,
    streaming,
    write_slow_project,
)
from tests.http.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

KINDS = ("", "async-", "batched-")
STREAMING = ("", "async-")
AROUND = ("preprocess", "postprocess")
MODELS = " ".join(
    [f"{kind}{end}" for kind in KINDS for end in ("quick", "late")]
    + [f"late-{hook}" for hook in AROUND]
)
DRAINING = (503, "application/json", "draining")
ENDED = (200, "text/event-stream", "draining")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slow_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Server:
    """Each way to serve an application."""
    return SERVERS[request.param]


@pytest.fixture
def ours() -> Server:
    """`mlserve run`, for what no other server can do."""
    return SERVERS["mlserve run"]


def is_listening(served: Served) -> bool:
    try:
        socket.create_connection(served.address(), 1).close()
    except ConnectionError:
        return False
    return True


def said(served: Served, word: str) -> list[str]:
    """Give the lines on stdout that begin with a word, in the order of their letters."""
    return sorted(line.strip() for line in served.lines if line.startswith(f"{word} "))


@dataclass(slots=True, kw_only=True)
class Stopped:
    """What became of a server that got SIGTERM amid requests of every kind."""

    callers: dict[str, Caller]
    signalled_at: float
    took_s: float
    code: int
    served: Served


@pytest.fixture(scope="module")
def stopped(folder: Path, server: Server) -> Stopped:
    """
    Stop a server amid requests of every kind.

    The one with a bound of its own cancels what is late, before the models' drain has ended.
    """
    drain_s = "5" if server.options else "1"
    with server.serve(folder, MODELS=MODELS, MLSERVE_DRAIN_S=drain_s) as served:
        callers = {}
        for kind in KINDS:
            callers[f"{kind}quick"] = Caller(served, predicting(f"{kind}quick", 0.8))
            callers[f"{kind}late"] = Caller(served, predicting(f"{kind}late"))
            served.wait_for(f"begun {kind}quick infer")
            served.wait_for(f"begun {kind}late infer")
        for kind in STREAMING:
            callers[f"{kind}quick stream"] = Caller(served, streaming(f"{kind}quick", 0.8))
            callers[f"{kind}late stream"] = Caller(served, streaming(f"{kind}late"))
            served.wait_for(f"begun {kind}quick stream")
            served.wait_for(f"begun {kind}late stream")
        for hook in AROUND:
            callers[f"late-{hook}"] = Caller(served, predicting(f"late-{hook}"))
            served.wait_for(f"begun late-{hook} {hook}")
        callers["queued"] = Caller(served, predicting("late"))
        callers["silent"] = Caller(served)
        callers["half a head"] = Caller(served, predicting("quick")[:40])
        if SERVERS["uvicorn"] is not server:  # which waits for it as long as `body_timeout_s` says
            callers["half a body"] = Caller(served, predicting("quick", 0.25)[:-2])
        callers["kept open"] = Caller(served, asking("/health"))
        if server.options:  # uvicorn alone would wait for it for ever
            callers["own"] = Caller(served, asking("/own/60"))
            served.wait_for("begun own")

        signalled_at = time.monotonic()
        served.process.send_signal(SIGTERM)
        if server is SERVERS["mlserve run"]:
            until(lambda: not is_listening(served))
            callers["kept open"].send(predicting("quick", 0.1))  # it was on its way
        code = served.exit_code()
        took_s = time.monotonic() - signalled_at
    return Stopped(
        callers=callers, signalled_at=signalled_at, took_s=took_s, code=code, served=served
    )


def test_what_ends_in_time_is_answered(stopped: Stopped) -> None:
    answers = [stopped.callers[f"{kind}quick"].answer() for kind in KINDS]
    streams = [stopped.callers[f"{kind}quick stream"].answer() for kind in STREAMING]

    assert [(answer.status, answer.body) for answer in answers] == [(200, b"0.8")] * 3
    assert [events_of(answer) for answer in streams] == [["0.8"] * 40] * 2


def test_what_does_not_is_told_that_the_server_drains(stopped: Stopped) -> None:
    names = [*(f"{kind}late" for kind in KINDS), *(f"late-{hook}" for hook in AROUND), "queued"]
    answers = [stopped.callers[name].answer() for name in names]

    assert [outcome_of(answer) for answer in answers] == [DRAINING] * 6
    assert [answer.headers["connection"] for answer in answers] == ["close"] * 6


def test_streams_that_do_not_end_in_time_end_with_an_error_and_done(stopped: Stopped) -> None:
    answers = [stopped.callers[f"{kind}late stream"].answer() for kind in STREAMING]

    assert [outcome_of(answer) for answer in answers] == [ENDED] * 2
    assert all(set(events_of(answer)[:-1]) == {"60.0"} for answer in answers)


def test_each_model_is_unloaded_once_while_none_of_its_hooks_runs(stopped: Stopped) -> None:
    assert said(stopped.served, "load") == sorted(f"load {name}" for name in MODELS.split())
    assert said(stopped.served, "unload") == sorted(
        f"unload {name}, 0 at work" for name in MODELS.split()
    )


def test_the_process_ends_soon_with_the_code_of_a_stop(stopped: Stopped, server: Server) -> None:
    assert stopped.code == server.sigterm_code
    assert stopped.took_s < 7


def test_a_request_that_is_here_by_half_is_not_waited_for(stopped: Stopped) -> None:
    head, body = (stopped.callers.get(f"half a {part}") for part in ("head", "body"))
    endings = [caller.ended_at() - stopped.signalled_at for caller in (head, body) if caller]

    assert max(endings) < 4
    assert all(outcome_of(answer) == DRAINING for answer in (head.answers() if head else ()))
    assert body is None or outcome_of(body.answer()) == DRAINING


def test_a_client_that_says_nothing_is_not_waited_for(stopped: Stopped) -> None:
    silent = stopped.callers["silent"]

    assert silent.answers() == []
    assert silent.ended_at() - stopped.signalled_at < 4


def test_a_request_on_its_way_on_an_idle_connection_is_answered(stopped: Stopped) -> None:
    health, *others = stopped.callers["kept open"].answers()

    assert health.status == 200
    assert [outcome_of(answer) for answer in others] in ([], [DRAINING])
    assert len(others) == (stopped.code == 0)  # the others close it at once


def test_an_endpoint_of_the_users_own_is_answered_with_our_error(stopped: Stopped) -> None:
    own = stopped.callers.get("own")

    assert own is None or outcome_of(own.answer()) == DRAINING


def test_new_requests_are_taken_in_the_grace_and_the_socket_closes_after_it(
    folder: Path, ours: Server
) -> None:
    with ours.serve(folder, MLSERVE_DRAIN_GRACE_S="0.7") as served:
        served.address()
        signalled_at = time.monotonic()
        served.process.send_signal(SIGTERM)
        served.wait_for("Stopping")
        answer = Caller(served, predicting("quick", 0.01)).answer()
        until(lambda: not is_listening(served))
        closed_after_s = time.monotonic() - signalled_at
        code = served.exit_code()

    assert (answer.status, answer.body) == (200, b"0.01")
    assert 0.7 <= closed_after_s < 3
    assert code == 0


def test_whoever_holds_a_connection_has_five_seconds_more_than_the_models(
    folder: Path, ours: Server
) -> None:
    with ours.serve(folder, MODELS="quick chatty", MLSERVE_DRAIN_S="0.2") as served:
        unread = Caller(served, asking("/v1/models/chatty/stream", 1000), reads=False)
        own = Caller(served, asking("/own/60"))
        served.wait_for("begun chatty stream")
        served.wait_for("begun own")
        signalled_at = time.monotonic()
        served.process.send_signal(SIGTERM)
        code = served.exit_code()
        took_s = time.monotonic() - signalled_at
        unread.close()

    assert outcome_of(own.answer()) == DRAINING
    assert said(served, "unload") == ["unload quick, 0 at work"]
    assert code == 0
    assert 5 < took_s < 15


@pytest.mark.parametrize(
    ("name", "number"),
    # uvicorn leaves the lifespan out at a second SIGINT
    [("mlserve run", SIGTERM), ("mlserve run", SIGINT), ("uvicorn", SIGTERM)],
)
def test_a_second_signal_ends_the_drain_at_once_and_unloads_all_the_same(
    folder: Path, name: str, number: Signals
) -> None:
    with SERVERS[name].serve(folder, MODELS="late async-late") as served:
        callers = [
            Caller(served, wire)
            for model in ("late", "async-late")
            for wire in (predicting(model), streaming(model))
        ]
        for line in ("late infer", "late stream", "async-late infer", "async-late stream"):
            served.wait_for(f"begun {line}")
        served.process.send_signal(number)
        until(lambda: not is_listening(served))
        signalled_at = time.monotonic()
        served.process.send_signal(number)
        served.process.wait(15)
        took_s = time.monotonic() - signalled_at
        served.exit_code()

    outcomes = [outcome_of(caller.answer()) for caller in callers]
    assert outcomes == [DRAINING, ENDED] * 2
    assert said(served, "unload") == ["unload async-late, 0 at work", "unload late, 0 at work"]
    assert took_s < 5


@pytest.mark.parametrize("name", ["mlserve run", "uvicorn"])
@pytest.mark.parametrize("n_signals", [1, 2])
def test_a_hook_that_never_returns_is_given_up_and_its_model_not_unloaded(
    folder: Path, name: str, n_signals: int
) -> None:
    drain_s = "0.3" if n_signals == 1 else "30"
    with SERVERS[name].serve(folder, MLSERVE_DRAIN_S=drain_s) as served:
        caller = Caller(served, predicting("quick", 60))
        served.wait_for("begun quick infer")
        signalled_at = time.monotonic()
        served.process.send_signal(SIGTERM)
        if n_signals == 2:
            until(lambda: not is_listening(served))
            served.process.send_signal(SIGTERM)
        code = served.exit_code()
        took_s = time.monotonic() - signalled_at

    assert outcome_of(caller.answer()) == DRAINING
    assert served.wait_for("model.unload.abandoned")
    assert said(served, "unload") == []
    assert code == SERVERS[name].sigterm_code
    assert took_s < 6


def test_a_lifespan_that_hangs_holds_the_process_until_a_third_signal(
    folder: Path, ours: Server
) -> None:
    with ours.serve(folder, LEAVE_S="60") as served:
        served.address()
        served.process.send_signal(SIGTERM)
        served.wait_for("leaving")
        served.process.send_signal(SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            served.process.wait(0.5)
        served.process.send_signal(SIGTERM)
        code = served.exit_code()

    assert said(served, "unload") == ["unload quick, 0 at work"]
    assert code == -SIGTERM
