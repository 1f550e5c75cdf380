"""
Answers that are kept, and equal requests that are computed once. Lives on the event loop.

A request that is not in the store begins a flight: a job of its own that the model answers. Equal
requests that come meanwhile wait for the same flight. Each waits with its own deadline, and may
leave; the flight goes on as long as anybody waits for it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from mlserve.cache import AnswerStore, Cache, CacheUse, Kept, Wish
from mlserve.errors import (
    DeadlineExceededError,
    DrainingError,
    OverloadedError,
    QueueFullError,
)
from mlserve.execution.worker import TaskSet
from mlserve.handler import Call
from mlserve.job import FutureSink, Job
from mlserve.lane import Lane
from mlserve.observability.metrics import cache_metrics
from mlserve.payloads import Binary
from mlserve.processes.lane import RemoteLane
from mlserve.spec import ModelSpec

__all__ = ["Answers", "Running"]

_MAX_WAITING = 4096
# The first of several may have had less time or another priority than the next one.
_FOR_THE_FIRST_ONLY = (DeadlineExceededError, QueueFullError, OverloadedError)
_DEFAULT = Wish()


@dataclass(frozen=True, slots=True)
class Running:
    """How a model answers jobs."""

    run: Callable[[Job], Awaitable[Any]]
    """Answers a job."""
    abandon: Callable[[Job], None]
    """Gives a job up that nobody waits for."""
    admit: Callable[..., None]
    """Raises if the model does not serve, or, unless `is_kept=True`, has no room for a job."""
    lane: Callable[[], Lane | RemoteLane]
    """Gives the present lane."""
    clock: Callable[[], float]
    """Gives monotonic seconds."""


@dataclass(slots=True)
class _Landed:
    """What became of a flight."""

    kept: Kept | None = None
    value: Any = None
    error: Exception | None = None
    is_stored: bool = False


class _Flight:
    """A request that is being answered, for all who wait for it."""

    def __init__(self, job: Job, generation: int) -> None:
        self.job = job
        self.generation = generation
        self.waiting: set[asyncio.Future[_Landed]] = set()
        self.has_landed = False

    def land(self, landed: _Landed) -> None:
        self.has_landed = True
        for future in self.waiting:
            if not future.done():
                future.set_result(landed)


class Answers:
    """
    The answers of one model.

    Args:
        spec: The model.
        cache: What is kept.
        model: How it answers what is not kept.
    """

    def __init__(self, spec: ModelSpec, cache: Cache, model: Running) -> None:
        self._spec = spec
        self._cache = cache
        self._model = model
        self._store = AnswerStore(cache)
        self._metrics = cache_metrics(spec.name, spec.version)
        self._flights: dict[tuple[Any, ...], _Flight] = {}
        self._generation = 0
        self._tasks = TaskSet()

    async def answer(self, job: Job) -> Kept:
        """
        Answer one request, and note in the job what the cache had to do with it.

        Raises:
            MLServeError: Why there is no answer.
        """
        kept, _ = await self._answer(job)
        return kept

    async def predict(self, job: Job) -> Any:
        """
        Answer one request with a value that nobody else has.

        Raises:
            MLServeError: Why there is no answer.
        """
        kept, landed = await self._answer(job)
        if landed is not None:
            return landed.value
        response = self._spec.contract.response
        if response.is_binary:
            return Binary(kept.body, kept.media_type)
        try:
            return response.decode(kept.body)
        except ValidationError:  # a type that does not take what it writes
            return await self._model.run(job)

    def clear(self) -> None:
        """Keep nothing of what was answered, or is being answered."""
        self._generation += 1
        self._flights.clear()
        self._store.clear()
        self._metrics.note_bytes(0)

    async def _answer(self, job: Job) -> tuple[Kept, _Landed | None]:
        """Give the answer, and the flight's own if it was begun for this request."""
        wish = job.wish or _DEFAULT
        key = self._key_of(job)
        if key is None or not wish.stores:
            job.cache_use = CacheUse("bypass", is_wished=key is not None)
            value = await self._model.run(job)
            return self._kept(value), _Landed(value=value)
        now = self._model.clock()
        if wish.reads and (kept := self._store.get(key, now, wish.max_age_s)) is not None:
            left_s = self._store.left_s(kept, now)
            self._model.admit(job, is_kept=True)
            self._note(job, CacheUse("hit", now - kept.at, left_s, is_stored=True))
            return kept, None
        try:
            return await self._fly(job, key, wish)
        finally:
            job.call.cancel()

    async def _fly(self, job: Job, key: tuple[Any, ...], wish: Wish) -> tuple[Kept, _Landed | None]:
        while True:
            flight = self._flights.get(key) if wish.reads else None
            if flight is not None and len(flight.waiting) >= _MAX_WAITING:
                flight = None
            is_first = flight is None
            if flight is None:
                flight = self._begin(job, key)
            landed = await self._wait(job, flight, key)
            error = landed.error
            if landed.kept is not None:
                kind: Literal["miss", "coalesced"] = "miss" if is_first else "coalesced"
                is_wished = wish != _DEFAULT
                use = CacheUse(kind, is_stored=landed.is_stored, is_wished=is_wished)
                self._note(job, use)
                return landed.kept, landed if is_first else None
            if error is not None and (is_first or not isinstance(error, _FOR_THE_FIRST_ONLY)):
                raise error.with_traceback(None)

    def _begin(self, job: Job, key: tuple[Any, ...]) -> _Flight:
        """Have the model answer a request, with as much time as any has that may join it."""
        self._model.admit(job, is_kept=False)
        timeout_s = self._spec.limits.timeout_s
        call = Call(
            job.call.request_id,
            timeout_s=timeout_s,
            headers=job.call.headers,
            clock=self._model.clock,
        )
        flown = Job(
            job.payload, call, timeout_s=timeout_s, priority=job.priority, tenant=job.tenant
        )
        # What it took and what hooks note belongs to the log of the first request.
        flown.times, call.annotations = job.times, job.call.annotations
        call.traceparent = job.call.traceparent
        flight = self._flights[key] = _Flight(flown, self._generation)
        self._tasks.spawn(self._run(flight, key))
        return flight

    async def _run(self, flight: _Flight, key: tuple[Any, ...]) -> None:
        landed = _Landed(error=DrainingError(self._spec.name))
        try:
            value = await self._model.run(flight.job)
            landed = _Landed(self._kept(value), value)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is told to all who wait
            landed = _Landed(error=exc)
        finally:
            self._forget(flight, key)
            if landed.kept is not None and flight.generation == self._generation:
                landed.is_stored = self._store.put(key, landed.kept)
                self._metrics.note_bytes(self._store.n_bytes)
            flight.land(landed)

    async def _wait(self, job: Job, flight: _Flight, key: tuple[Any, ...]) -> _Landed:
        """Wait for a flight, within a request's own time and as long as its client waits."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Landed] = loop.create_future()

        def expire() -> None:
            stage = self._model.lane().stage_of(flight.job)
            job.fail(DeadlineExceededError(stage, job.timeout_s))

        job.sink = FutureSink(future)
        timer = loop.call_later(max(0.0, job.call.remaining_s), expire)
        flight.waiting.add(future)
        try:
            return await future
        finally:
            timer.cancel()
            job.sink = None
            flight.waiting.discard(future)
            if not (flight.waiting or flight.has_landed):
                self._forget(flight, key)
                self._model.abandon(flight.job)

    def _forget(self, flight: _Flight, key: tuple[Any, ...]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _key_of(self, job: Job) -> tuple[Any, ...] | None:
        """Write down all that an answer may depend on; `None` if that cannot be."""
        contract, payload = self._spec.contract, job.payload
        declared = contract.request_type
        if isinstance(declared, type) and type(payload) is not declared:
            return None  # a subclass, which may hold more than is written
        try:
            written = contract.request.dump_json(payload, round_trip=True, warnings="error")
            # JSON has one word for nothing and for what is no finite number.
            plain = repr(contract.request.dump_python(payload)) if b"null" in written else ""
        except Exception:  # noqa: BLE001 - whatever it is, such a request is not kept
            return None
        headers = tuple(sorted(job.call.headers.items()))
        return written, plain, headers, job.tenant if self._cache.per_key else None

    def _kept(self, value: Any) -> Kept:
        now = self._model.clock()
        if isinstance(value, Binary):
            return Kept(value.content, value.media_type, now)
        return Kept(self._spec.contract.response.encode(value), "application/json", now)

    def _note(self, job: Job, use: CacheUse) -> None:
        job.cache_use = use
        job.call.annotations["cache"] = use.kind
        self._metrics.note(use.kind)

    def __repr__(self) -> str:
        return f"<Answers {self._store!r}, {len(self._flights)} being made>"
