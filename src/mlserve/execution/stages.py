"""
Stages and how they are driven.

A stage is a generator that yields the hooks to call and receives what they return or raise; it
knows no thread and no event loop. So one stage serves sync and async handlers, in a thread or in
a process: only the driver differs.
"""

import asyncio
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

from mlserve.contract import Hook
from mlserve.execution.worker import Worker

__all__ = ["Stage", "Step", "as_exception", "contained", "is_cancelling", "run_here", "run_mixed"]

ResultT = TypeVar("ResultT")


class Step(NamedTuple):
    """One hook to call with its arguments."""

    hook: Hook
    args: tuple[Any, ...] = ()


Stage = Generator[Step, Any, ResultT]


def run_here(stage: Stage[ResultT], handler: Any) -> ResultT:
    """Run a stage whose hooks are sync, in the calling thread."""
    try:
        step = next(stage)
        while True:
            try:
                value = _call(handler, step)
            except BaseException as exc:  # noqa: BLE001 - user code may raise anything
                step = stage.throw(as_exception(exc))
            else:
                step = stage.send(value)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # what the stage returned


async def run_mixed(stage: Stage[ResultT], handler: Any, worker: Worker) -> ResultT:
    """Run a stage from the event loop: async hooks on it, sync hooks in the worker's thread."""
    try:
        step = next(stage)
        while True:
            try:
                hook, args = step
                if hook.is_async and hook.name != "stream":
                    value = await getattr(handler, hook.name)(*args)
                else:
                    value = await _call_mixed(handler, step, worker)
            except BaseException as exc:
                if is_cancelling():
                    raise
                step = stage.throw(as_exception(exc))
            else:
                step = stage.send(value)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # what the stage returned


def _call(handler: Any, step: Step) -> Any:
    hook, args = step
    name = hook.name
    value = getattr(handler, name)(*args)
    if name != "stream":
        return value
    # Only warm-up runs `stream` as a stage: its first chunk shows that it works.
    generator = iter(value)
    try:
        return next(generator, None)
    finally:
        if hasattr(generator, "close"):
            generator.close()


async def _call_mixed(handler: Any, step: Step, worker: Worker) -> Any:
    hook, args = step
    if not hook.is_async:
        if hook.overridden:
            return await worker.call(lambda: _call(handler, step))
        return _call(handler, step)
    value = handler.stream(*args)
    try:
        return await anext(value, None)
    finally:
        await value.aclose()


def is_cancelling() -> bool:
    """Whether it is the running task that is cancelled, not something within a hook."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def contained(function: Callable[..., ResultT], *args: Any) -> ResultT:
    """
    Call what may run code of the handler's beside its hooks, such as a validator or `__len__`.

    Raises:
        Exception: What it raised, as an exception that a stage may handle.
    """
    try:
        return function(*args)
    except Exception:
        raise
    except BaseException as exc:
        raise as_exception(exc) from exc


def as_exception(error: BaseException) -> Exception:
    """
    Give an exception that may be handled as the failure of a hook.

    `SystemExit`, a `CancelledError` and their like would end the thread or task that serves
    everybody else.
    """
    if isinstance(error, Exception):
        return error
    return RuntimeError(f"A hook raised {type(error).__name__}.")
