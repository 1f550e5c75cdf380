"""Faults of replicas, queues and memory in every mode, each on a server of its own."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import httpx2
import pytest
from fastapi import FastAPI
from tests.faults.client import Plan, Record, play
from tests.faults.handler import Ask, FaultyHandler, error_of
from tests.faults.rig import Rig, require, require_healthy
from tests.faults.table import MODES, TOO_LATE, Mode, Outcome, new_plan
from tests.http.waiting import until

from mlserve import Limits, ModelServer, Replicas, Restart
from mlserve.testing import running

pytestmark = pytest.mark.slow

_RAISED = ("error", "exit", "interrupt", "cancelled", "memory", "oom")
_WAIT_S = 10.0


class Held(FaultyHandler):
    """Keeps requests whose text says so until they are released."""

    released: ClassVar[threading.Event]

    def infer(self, inputs: list[Ask], calls: list[Any]) -> Any:
        if any(item.text.startswith("hold") for item in inputs):
            assert self.released.wait(_WAIT_S)
        return super().infer(inputs, calls)

    def stream(self, item: Ask, call: Any) -> Any:
        if item.text.startswith("hold"):
            assert self.released.wait(_WAIT_S)
        return super().stream(item, call)


def held_handler() -> type[Held]:
    class Handler(Held):
        released = threading.Event()
        run: ClassVar[set[str]] = set()

    return Handler


def holding(mode: Mode, rig: Rig, n: int) -> list[Plan]:
    """Make requests that keep every place of the model busy."""
    plans = [new_plan(mode, f"holding-{number}", rig.dice, at_s=0.0) for number in range(n)]
    for plan in plans:
        plan.payload["text"] = f"hold {plan.id}"
    return plans


def play_behind(
    port: int,
    holders: list[Plan],
    plans: list[Plan],
    release: Callable[[], None],
    server: ModelServer,
    mode: Mode,
) -> tuple[list[Record], list[Record]]:
    """Send `plans` once `holders` keep the model busy; let go when all of them are done or wait."""
    model = server.model_for(mode.name)

    async def play_all() -> tuple[list[Record], list[Record]]:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(play(port, holders))
            await asyncio.to_thread(until, lambda: is_held(len(holders)))
            second = group.create_task(play(port, [p for p in plans if not is_patient(p)]))
            await second
            third = group.create_task(play(port, [p for p in plans if is_patient(p)]))
            n_patient = sum(is_patient(plan) for plan in plans)
            await asyncio.to_thread(until, lambda: in_flight() >= len(holders) + n_patient)
            release()
        return first.result(), [*second.result(), *third.result()]

    def in_flight() -> int:
        return model.statistics().in_flight

    def is_held(n: int) -> bool:
        return in_flight() == n and model.statistics().queued == 0

    def is_patient(plan: Plan) -> bool:
        return plan.behaviour == "patient" and "X-Request-Timeout" not in plan.headers

    return asyncio.run(play_all())


@pytest.mark.parametrize("timeout", [None, "0.08"], ids=["leaves", "runs out of time"])
def test_what_is_not_wanted_any_more_while_it_waits_is_never_run(
    timeout: str | None, mode: Mode, rig: Rig
) -> None:
    handler = held_handler()
    server = mode.server(handler, replicas=Replicas(max_streams=2))
    holders = holding(mode, rig, 2 if mode.is_stream else 1)
    options: dict[str, Any] = {"behaviour": "leaves", "leave_after_s": 0.05}
    if timeout is not None:
        options = {"headers": {"X-Request-Timeout": timeout}}
    faulty = [
        new_plan(mode, f"faulty-{number}", rig.dice, is_faulty=True, **options)
        for number in range(5)
    ]
    healthy = rig.healthy(mode, 5)

    with running(server, timeout_s=15) as client:
        port = client.base_url.port or 80
        held, records = play_behind(
            port, holders, [*faulty, *healthy], handler.released.set, server, mode
        )
        rig.note(held)
        rig.note(records)
        rig.require_recovered(port, mode, server)

    require_healthy([*held, *(r for r in records if not r.plan.is_faulty)], mode)
    require(TOO_LATE if timeout else Outcome(None), [r for r in records if r.plan.is_faulty])
    assert handler.run is not None
    assert handler.run.isdisjoint(plan.id for plan in faulty)


def test_what_finds_no_place_is_refused_at_once_and_the_rest_is_answered(
    mode: Mode, rig: Rig
) -> None:
    handler = held_handler()
    limits = Limits(timeout_s=_WAIT_S, stream_timeout_s=_WAIT_S, max_queue_size=4)
    server = mode.server(handler, limits=limits, replicas=Replicas(max_streams=2))
    holders = holding(mode, rig, 2 if mode.is_stream else 1)
    model = server.model_for(mode.name)

    async def overflow(port: int) -> tuple[list[Record], list[Record]]:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(play(port, holders))
            await asyncio.to_thread(until, lambda: model.statistics().in_flight == len(holders))
            await asyncio.to_thread(until, lambda: model.statistics().queued == 0)
            crowd = [group.create_task(play(port, [plan])) for plan in rig.healthy(mode, 12)]
            refused = [task for task in crowd if task.done()]
            while len(refused) < 8:
                await asyncio.wait(set(crowd) - set(refused), return_when="FIRST_COMPLETED")
                refused = [task for task in crowd if task.done()]
            handler.released.set()
        waited = [task.result()[0] for task in crowd if task not in refused]
        return [task.result()[0] for task in refused], [*waited, *first.result()]

    with running(server, timeout_s=15) as client:
        port = client.base_url.port or 80
        refused, served = asyncio.run(overflow(port))
        rig.note([*refused, *served], n_faults=len(refused))
        rig.require_recovered(port, mode, server)

    require(Outcome(503, "queue_full"), refused)
    assert all(int(record.answers[0].headers["retry-after"]) >= 1 for record in refused)
    assert len(served) == 4 + len(holders)
    require_healthy(served, mode)


def memory_bound(n: int) -> type[FaultyHandler]:
    class Handler(FaultyHandler):
        sizes: ClassVar[list[int]] = []

        def infer(self, inputs: list[Ask], calls: list[Any]) -> Any:
            self.sizes.append(len(inputs))
            if len(inputs) > n:
                raise error_of("oom")
            return super().infer(inputs, calls)

    return Handler


def test_a_batch_that_does_not_fit_into_memory_is_halved_and_nobody_notices(rig: Rig) -> None:
    mode = MODES[1]
    handler = memory_bound(3)
    server = mode.server(handler)

    with running(server, timeout_s=15) as client:
        port = client.base_url.port or 80
        for _ in range(4):
            records = rig.play(port, [rig.opener(mode), *rig.healthy(mode, 16)])
            require_healthy(records, mode)
        rig.require_recovered(port, mode, server)

    sizes: list[int] = handler.sizes  # type: ignore[attr-defined]  # of the class made above
    assert max(sizes) > 3
    first = next(number for number, size in enumerate(sizes) if size > 3)
    assert max(sizes[first + 40 :], default=0) <= 4  # what was learned is kept


class Flaky(FaultyHandler):
    """Fails in the hooks of a replica's life when `broken` names them."""

    broken: ClassVar[dict[str, str]]
    n_loads: ClassVar[int]
    n_unloads: ClassVar[int]
    loaded: ClassVar[set[int]]
    is_first: bool
    """Whether it is the first handler of its replica's number."""

    def load(self) -> None:
        cls = type(self)
        cls.n_loads += 1
        self.is_first = self.context.replica not in cls.loaded
        cls.loaded.add(self.context.replica)
        self._fail("load")

    def warmup(self) -> None:
        self._fail("warmup")

    def unload(self) -> None:
        type(self).n_unloads += 1
        self._fail("unload")

    def health(self) -> None:
        if self.is_first and str(self.context.replica) == self.broken.get("ails"):
            raise RuntimeError("This replica ails.")

    def _fail(self, hook: str) -> None:
        if hook in self.broken:
            raise error_of(self.broken[hook])


def flaky_handler(**broken: str) -> type[Flaky]:
    hooks = broken

    class Handler(Flaky):
        broken: ClassVar[dict[str, str]] = hooks
        n_loads: ClassVar[int] = 0
        n_unloads: ClassVar[int] = 0
        loaded: ClassVar[set[int]] = set()

    return Handler


@pytest.mark.parametrize("what", _RAISED)
@pytest.mark.parametrize("hook", ["load", "warmup"])
def test_a_model_that_cannot_start_is_out_of_order_and_another_one_works(
    hook: str, what: str, mode: Mode, rig: Rig
) -> None:
    server = mode.server(FaultyHandler, on_load_failure="serve")
    server.add("broken", flaky_handler(**{hook: what}))
    broken = Mode("broken", mode.max_size, mode.hook)
    faulty = [new_plan(broken, f"faulty-{n}", rig.dice, is_faulty=True) for n in range(4)]

    with running(server, wait_ready=False, timeout_s=15) as client:
        port = client.base_url.port or 80
        until(lambda: server.model_for("broken").state == "failed")
        until(lambda: server.model_for(mode.name).state == "ready")
        rig.play_fault(port, mode, faulty, Outcome(503, "model_failed"))
        rig.require_recovered(port, mode, server)


def with_reload(server: ModelServer, mode: Mode) -> FastAPI:
    """Add a route that reloads the model, on the event loop of the server."""
    app = server.build()

    @app.post("/reload")
    async def reload() -> str:
        await server.model_for(mode.name).reload()
        return "done"

    return app


def reloading(client: httpx2.Client) -> Callable[[], Awaitable[int]]:
    """Ask that route for a reload; gives the status."""

    async def reload() -> int:
        return (await asyncio.to_thread(client.post, "/reload")).status_code

    return reload


def play_while_reloading(
    rig: Rig, port: int, mode: Mode, reload: Callable[[], Awaitable[int]], n: int
) -> tuple[list[Record], list[int]]:
    """Send requests while `n` reloads run one after another; also give the reloads' statuses."""

    async def play_all() -> tuple[list[Record], list[int]]:
        async with asyncio.TaskGroup() as group:
            requests = group.create_task(play(port, plans))
            statuses = [await reload() for _ in range(n)]
        return requests.result(), statuses

    plans = [plan for number in range(6) for plan in rig.healthy(mode, 10)]
    for plan in plans:
        plan.at_s = rig.dice.random() * 0.4
    return asyncio.run(play_all())


@pytest.mark.parametrize("what", [None, "error", "exit", "cancelled"])
def test_reloads_under_load_lose_nothing_even_if_unload_raises(
    what: str | None, mode: Mode, rig: Rig
) -> None:
    handler = flaky_handler(**({} if what is None else {"unload": what}))
    server = mode.server(handler)
    app = with_reload(server, mode)

    with running(app, timeout_s=15) as client:
        port = client.base_url.port or 80
        records, statuses = play_while_reloading(rig, port, mode, reloading(client), 5)
        rig.note(records, n_faults=5)
        assert handler.n_unloads == 5
        rig.require_recovered(port, mode, server)

    require_healthy(records, mode)
    assert statuses == [200] * 5
    assert handler.n_loads == handler.n_unloads == 1 + 5


def test_a_reload_that_fails_keeps_the_old_model(mode: Mode, rig: Rig) -> None:
    handler = flaky_handler()
    server = mode.server(handler)
    app = with_reload(server, mode)

    with running(app, timeout_s=15) as client:
        port = client.base_url.port or 80
        handler.broken["load"] = "error"
        records, statuses = play_while_reloading(rig, port, mode, reloading(client), 3)
        rig.note(records, n_faults=3)
        assert handler.n_unloads == 3  # of what could not be loaded
        rig.require_recovered(port, mode, server)

    require_healthy(records, mode)
    assert statuses == [500] * 3
    assert handler.n_loads == handler.n_unloads == 1 + 3


def spread(rig: Rig, mode: Mode) -> list[Plan]:
    """Make requests for the time in which a replica is found to ail and is replaced."""
    plans = rig.healthy(mode, 40)
    for plan in plans:
        plan.at_s = rig.dice.random() * 0.4
    return plans


def test_while_an_ailing_replica_is_replaced_the_other_one_serves(mode: Mode, rig: Rig) -> None:
    handler = flaky_handler(ails="0")
    replicas = Replicas(count=2, restart=Restart(backoff_s=0.01))
    server = mode.server(handler, replicas=replicas, health_period_s=0.05)

    with running(server, timeout_s=15) as client:
        port = client.base_url.port or 80
        records = rig.play(port, spread(rig, mode))
        until(lambda: handler.n_loads >= 3)
        rig.require_recovered(port, mode, server)

    require_healthy(records, mode)


def test_while_the_only_replica_is_replaced_requests_are_refused_or_answered_never_lost(
    mode: Mode, rig: Rig
) -> None:
    may_load = threading.Event()
    flaky = flaky_handler(ails="0")

    class Handler(flaky):  # type: ignore[misc, valid-type]  # made for this test
        def load(self) -> None:
            super().load()
            assert self.is_first or may_load.wait(_WAIT_S)

    server = mode.server(
        Handler, replicas=Replicas(restart=Restart(backoff_s=0.01)), health_period_s=0.05
    )

    async def play_all(port: int) -> tuple[list[Record], list[Record]]:
        async with asyncio.TaskGroup() as group:
            beside = group.create_task(play(port, spread(rig, mode)))
            await asyncio.to_thread(until, lambda: Handler.n_loads == 2)
            held = await play(port, rig.healthy(mode))
            may_load.set()
        return beside.result(), held

    with running(server, timeout_s=15) as client:
        port = client.base_url.port or 80
        beside, held = asyncio.run(play_all(port))
        rig.note([*beside, *held])
        until(lambda: server.model_for(mode.name).state == "ready")
        after = rig.play(port, rig.healthy(mode))
        rig.require_recovered(port, mode, server)

    refused = [record for record in beside if record.status != 200]
    require(Outcome(503, "model_failed"), [*held, *refused])
    assert all("retry-after" in record.answers[0].headers for record in [*held, *refused])
    require_healthy([*after, *(record for record in beside if record.status == 200)], mode)
    assert Handler.n_loads == Handler.n_unloads == 2
