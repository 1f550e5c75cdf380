"""Processes that come and go in order: what is left of them, and what is not."""

import asyncio
import gc
import logging
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from tests.http.waiting import until as until_is
from tests.processes.handlers import Noting, Obedient, Sickly, WarmedUp
from tests.processes.serving import QUICK, Served, begin, served, until

from mlserve import (
    ConfigurationError,
    Limits,
    ModelFailedError,
    ModelServer,
    ReplicaDiedError,
    Replicas,
    Restart,
    ServerSettings,
)
from mlserve.processes import messages
from mlserve.processes.keeper import ReplicaState
from mlserve.testing import running

pytestmark = pytest.mark.slow

MIB = 2**20


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


def events(notes: Path) -> dict[int, list[str]]:
    """Give what each process has noted, in order."""
    by_pid: dict[int, list[str]] = {}
    for line in notes.read_text().splitlines():
        event, pid = line.split()
        by_pid.setdefault(int(pid), []).append(event)
    return by_pid


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_end(pids: list[int], timeout_s: float = 5.0) -> float:
    """Wait until processes are no more, and say how long that took."""
    begun = time.monotonic()
    pause = threading.Event()
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() - begun < timeout_s
        pause.wait(0.01)
    return time.monotonic() - begun


def test_a_process_that_takes_too_much_memory_is_replaced_between_two_batches(
    notes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limit = {"memory_limit_bytes": 250 * MIB}
    with served(partial(Noting, notes), replicas=limit) as model:
        pids = model.ask_all([f"leak {60 * MIB}"] * 8)
        failures = model.keeper.n_failures

    lives = events(notes)
    assert [type(pid) for pid in pids] == [str] * 8, pids
    assert 2 <= len(set(pids)) <= 4
    assert set(lives) >= set(map(int, pids))
    assert all(life == ["load", "unload"] for life in lives.values())
    assert failures == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_limit_that_the_loaded_model_exceeds_is_refused_at_the_start(notes: Path) -> None:
    limit = {"memory_limit_bytes": MIB}

    with (
        pytest.raises(ConfigurationError, match="memory_limit_bytes"),
        served(partial(Noting, notes), replicas=limit),
    ):
        pass

    assert list(events(notes).values()) == [["load", "unload"]]


def test_unload_is_called_once_at_the_end(notes: Path) -> None:
    with served(partial(Noting, notes), replicas={"count": 2}) as model:
        model.ask("")

    assert sorted(map(tuple, events(notes).values())) == [("load", "unload")] * 2


def test_an_unload_that_hangs_holds_the_end_up_no_longer_than_it_may(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlserve.engine.UNLOAD_S", 0.3)
    handler = partial(Noting, notes, unload="hang")
    with served(handler, settings=ServerSettings(drain_s=0.3)) as model:
        pid = int(model.ask(""))
        begun = time.monotonic()

    assert time.monotonic() - begun < 3.0
    assert not is_alive(pid)


def test_processes_that_are_replaced_and_do_not_end_are_ended(notes: Path, tmp_path: Path) -> None:
    """One hangs in `unload`, and the other one has a thread of the handler's own."""

    def retire(model: Served) -> None:
        for keeper in model.fleet._keepers.values():
            assert keeper.process is not None
            keeper.process.send(messages.RETIRE, "memory")

    handler = partial(Noting, notes, unload=f"once {tmp_path / 'mark'} hang")
    limits = Limits(hard_timeout_s=0.5)
    with served(handler, replicas={"count": 2}, limits=limits) as model:
        before = set(model.ask_all(["thread"] * 2))
        retire(model)
        after = model.ask("")
        model.wait(lambda: len(model.fleet.status.serving) == 2)
        failures = [keeper.n_failures for keeper in model.fleet._keepers.values()]
    wait_for_end([int(pid) for pid in before])

    assert len(before) == 2
    assert after not in before
    assert failures == [0, 0]
    assert sorted(events(notes).values()) == [["load"], *[["load", "unload"]] * 3]


def test_a_stream_whose_reader_is_slow_is_sent_to_its_end_by_a_process_that_is_replaced(
    notes: Path,
) -> None:
    async def scenario(model: Served) -> list[str]:
        stream = model.model.stream("20")
        chunks = [await anext(stream)]
        process = model.keeper.process
        assert process is not None
        await until(lambda: model.fleet.board.replicas[0].running == 0)  # the generator has ended
        process.send(messages.RETIRE, "memory")
        await until(lambda: model.keeper.state is ReplicaState.RETIRING)
        await asyncio.sleep(0.2)  # time is what this is about
        return chunks + [chunk async for chunk in stream]

    with served(partial(Noting, notes)) as model:
        chunks = model.run(scenario(model))

    assert chunks == [str(number) for number in range(20)]


@pytest.mark.parametrize("n_chunks", ["20", "100000"])
def test_a_stream_that_does_not_end_holds_the_next_process_up_for_some_time_only(
    notes: Path, monkeypatch: pytest.MonkeyPatch, n_chunks: str
) -> None:
    monkeypatch.setattr("mlserve.processes.fleet._STREAM_GRACE_S", 0.2)

    async def scenario(model: Served) -> tuple[str, list[str]]:
        stream = model.model.stream(n_chunks)
        chunks = [await anext(stream)]
        process = model.keeper.process
        assert process is not None
        process.send(messages.RETIRE, "memory")
        answer = await model.model.predict("")  # of the next process, while nobody reads the stream
        with pytest.raises(ReplicaDiedError):
            chunks += [chunk async for chunk in stream]
        return answer, chunks

    with served(partial(Noting, notes)) as model:
        before = model.ask("")
        after, chunks = model.run(scenario(model))
        wait_for_end([int(before)])

    assert after != before
    assert chunks == [str(number) for number in range(len(chunks))]
    assert events(notes)[int(before)] == ["load", "unload"]


def test_what_a_handler_has_forked_ends_with_its_process(notes: Path) -> None:
    async def scenario(model: Served) -> list[int]:
        pids = [int(await model.model.predict("fork"))]
        forked = list(map(int, children_of(pids[0])))
        waiting = begin(model.model.predict("sleep"))
        model.kill()
        return [*pids, *forked, int(await waiting)]

    with served(partial(Noting, notes)) as model:
        dead, forked, after = model.run(scenario(model))
        wait_for_end([forked])

    assert after != dead


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split() or [
        child
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def resources() -> dict[str, int]:
    gc.collect()
    maps = Path("/proc/self/maps").read_text().splitlines()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "boards": sum("mlserve-board" in line for line in maps),
        "files": len(os.listdir("/dev/shm")),  # noqa: S108 - nothing is written there
        "children": len(children_of(os.getpid())),
    }


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: n for name, n in after.items() if n > before[name]}


def test_fifty_deaths_leave_nothing_behind() -> None:
    """Most of them in the load, which is quicker."""
    restart = Restart(failures=1000, backoff_s=1e-3, max_backoff_s=1e-3)

    async def kill_all(model: Served, n: int) -> None:
        pids: set[int] = set()
        while len(pids) < n:
            await until(lambda: model.pid() not in (0, *pids))
            pids.add(model.kill())

    with served(Obedient, restart=restart) as model:
        before = resources()
        for _ in range(3):
            model.kill()
            model.ready()
        model.run(kill_all(model, 47))
        model.ready()
        model.wait(lambda: not grown(before, resources()))


def test_a_reload_leaves_nothing_behind(notes: Path) -> None:
    with served(partial(Noting, notes)) as model:
        model.ask("")
        model.run(model.model.reload())
        before = resources()
        for _ in range(2):
            model.run(model.model.reload())
        model.ask("")
        model.wait(lambda: not grown(before, resources()))

    assert all(life == ["load", "unload"] for life in events(notes).values())


def test_a_replica_that_fails_its_examples_and_mends_is_not_met_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    restart = Restart(backoff_s=0.05, max_backoff_s=0.05)

    with served(partial(Sickly, broken), restart=restart) as model:
        pid = model.pid()
        met: list[int] = []
        monkeypatch.setattr(model.keeper.process, "introduce", met.append)
        broken.touch()
        for _ in range(20):
            model.ask_all(["a"])
            if model.model.state == "failed":
                break
        model.wait(lambda: model.model.state == "failed")
        reason = model.model.engine.lifecycle.reason
        with pytest.raises(ModelFailedError):
            model.ask("a")
        broken.unlink()
        model.wait(lambda: model.model.state == "ready")
        answer = model.ask("a")

    assert met == []
    assert "examples" in str(reason)
    assert answer == str(pid)


def test_a_replica_whose_health_fails_is_replaced(tmp_path: Path) -> None:
    broken = tmp_path / "ill"
    settings = ServerSettings(health_period_s=0.05)

    with served(partial(Sickly, tmp_path / "broken", broken), settings=settings) as model:
        pid = model.ask("a")
        broken.touch()
        model.wait(lambda: model.pid() not in (0, int(pid)))
        broken.unlink()
        after = model.ask("a")
        failures = model.keeper.n_failures

    assert after != pid
    assert failures == 0


def test_a_health_hook_that_hangs_is_ended(tmp_path: Path) -> None:
    settings = ServerSettings(health_period_s=0.05)
    limits = Limits(hard_timeout_s=0.3)
    handler = partial(Sickly, tmp_path / "broken", tmp_path / "ill", "hang")

    with served(handler, settings=settings, limits=limits) as model:
        pid = model.ask("a")
        (tmp_path / "ill").touch()
        model.wait(lambda: model.pid() not in (0, int(pid)))
        (tmp_path / "ill").unlink()
        after = model.ask("a")

    assert after != pid


def test_a_server_whose_replica_is_restarted_is_not_ready_and_answers_all_the_same() -> None:
    replicas = Replicas(placement="process", restart=QUICK)
    handler = partial(WarmedUp, load="sleep 0.5")
    server = ModelServer().add("m", handler, replicas=replicas)

    with running(server) as client:
        pid = client.post("/v1/models/m/predict", json="a").json()["pid"]
        before = client.get("/ready").status_code
        os.kill(pid, signal.SIGKILL)
        wait_for_end([pid])
        until_is(lambda: client.get("/ready").status_code == 503)
        during = client.get("/ready").json()
        answer = client.post("/v1/models/m/predict", json="b")
        after = client.get("/ready").status_code

    assert (before, after) == (200, 200)
    assert "restarting" in str(during)
    assert (answer.status_code, answer.json()["text"]) == (200, "b")
