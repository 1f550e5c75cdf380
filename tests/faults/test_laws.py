"""Laws of failure: whoever raises fails, nobody else; every stream ends once, with `[DONE]`."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.faults.client import Plan, play
from tests.faults.conftest import SEED
from tests.faults.handler import N_CHUNKS, FaultyHandler, digest_of
from tests.faults.rig import Tally, require_none
from tests.faults.table import MODES, PLACED_MODES, Outcome, new_plan

from mlserve import Batching, MLServeError, Model, ModelServer, Replicas, ServerSettings
from mlserve.testing import running

pytestmark = pytest.mark.slow

FAULTS = {
    "preprocess:error": "model_error",
    "preprocess:refused": "invalid_input",
    "infer:error": "model_error",
    "infer:refused": "invalid_input",
    "infer:exit": "model_error",
    "place:error": "model_error",
    "place:cancelled": "model_error",
    "postprocess:error": "model_error",
}
SIZES = (1, 2, 5, 8, 16)
crowds = st.lists(st.sampled_from(["", "", "", *FAULTS]), min_size=1, max_size=24)
Served = tuple[asyncio.Runner, ModelServer]


@pytest.fixture(scope="module", params=["thread", "process"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """A model by each of the sizes that its batches may have, on an event loop of the tests'."""
    server = ModelServer(settings=ServerSettings(freeze_gc=False))
    for size in SIZES:
        batching, replicas = Batching(max_size=size), Replicas(placement=request.param)
        server.add(f"up-to-{size}", FaultyHandler, batching=batching, replicas=replicas)
    started = server.started()
    with asyncio.Runner() as runner:
        runner.run(started.__aenter__())
        yield runner, server
        runner.run(started.__aexit__(None, None, None))


@settings(max_examples=40)
@given(faults=crowds, max_size=st.sampled_from(SIZES))
@example(faults=["infer:error"] * 8, max_size=8)
@example(faults=["infer:exit", *[""] * 15], max_size=16)
@example(faults=[*[""] * 15, "infer:error"], max_size=16)
def test_of_any_batch_exactly_those_fail_that_raise_and_all_others_get_their_own_answers(
    faults: list[str], max_size: int, served: Served
) -> None:
    runner, server = served
    answers = runner.run(answers_to(faults, server.model_for(f"up-to-{max_size}")))

    expected = [FAULTS[f] if f else digest_of(text_of(n, f)) for n, f in enumerate(faults)]
    assert answers == expected


def text_of(number: int, fault: str) -> str:
    return f"{number} {fault}"


async def answers_to(faults: list[str], model: Model) -> list[str]:
    """Give each request's digest or error, once all of them have waited for the model at once."""

    async def answer(number: int, fault: str) -> str:
        try:
            request = {"text": text_of(number, fault), "fault": fault}
            return str((await model.predict(request)).digest)
        except MLServeError as exc:
            return exc.code

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(model.predict({"text": "first", "fault": "infer:hold", "hold_s": 0.01}))
        tasks = [group.create_task(answer(n, fault)) for n, fault in enumerate(faults)]
    return [task.result() for task in tasks]


@pytest.fixture(
    scope="module", params=[m for m in PLACED_MODES if m.is_stream], ids=lambda mode: mode.id
)
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """Where the streaming model is to be found."""
    with running(request.param.server(FaultyHandler), timeout_s=15) as client:
        yield client.base_url.port or 80


fates = st.tuples(
    st.sampled_from(["own", "raise", "refuse", "bad_chunk", "leave", "late"]),
    st.integers(0, N_CHUNKS - 1),
)
_PAYLOADS: dict[str, dict[str, Any]] = {
    "raise": {"fault": "place:error"},
    "refuse": {"fault": "place:refused"},
    "bad_chunk": {"fault": "output:nan"},
    "late": {"fault": "place:hold", "hold_s": 0.15},
}
_OUTCOMES = {
    "raise": Outcome(500, "model_error"),
    "refuse": Outcome(422, "invalid_input"),
    "bad_chunk": Outcome(500, "model_error"),
    "late": Outcome(504, "deadline_exceeded"),
}


@settings(max_examples=25)
@given(streams=st.lists(fates, min_size=1, max_size=8), seed=st.integers(0, 2**20))
@example(streams=[("raise", 0), ("leave", 0), ("late", 0), ("own", 0)], seed=0)
@example(streams=[("late", N_CHUNKS - 1)] * 8, seed=0)
def test_every_stream_that_is_read_ends_in_one_done_whatever_happens_to_it_and_others(
    streams: list[tuple[str, int]], seed: int, port: int, tally: Tally
) -> None:
    dice = random.Random(f"{SEED} {seed}")
    plans = [plan_of(fate, at, dice) for fate, at in streams]

    records = asyncio.run(play(port, plans))

    tally.note(records)
    require_none("lost", [record for record in records if record.is_lost])
    require_none("crossed", [record for record in records if not record.is_own])
    for record, (fate, at) in zip(records, streams, strict=True):
        if fate != "leave":
            seen = (record.status, record.code, record.n_chunks)
            assert seen in allowed(fate, at), f"{record}"


def plan_of(fate: str, at: int, dice: random.Random) -> Plan:
    options: dict[str, Any] = {}
    if fate == "leave":
        options = {"behaviour": "leaves_in_stream", "leave_after_events": at}
    if fate == "late":
        options = {"headers": {"X-Request-Timeout": "0.1"}}
    payload = {"at": at, **_PAYLOADS.get(fate, {})}
    return new_plan(MODES[2], fate, dice, payload, is_faulty=fate != "own", **options)


def allowed(fate: str, at: int) -> list[tuple[int | None, str | None, int]]:
    """List what a stream may get: an error has its own status until a chunk was sent."""
    if fate == "own":
        return [(200, None, N_CHUNKS)]
    error = _OUTCOMES[fate]
    if fate == "late":  # on a busy machine its time may be over at any chunk
        return [(error.status, error.code, 0), *((200, error.code, n) for n in range(at + 1))]
    return [(error.status, error.code, 0) if at == 0 else (200, error.code, at)]
