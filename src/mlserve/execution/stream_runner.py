"""
Running one stream: from the handler's generator into a channel.

The generator is iterated and closed in one and the same thread (or task), whatever happens to its
client: it is closed at its next `yield`, never from outside.
"""

from collections.abc import Callable
from typing import Any

from mlserve.errors import MLServeError, ModelOutputError
from mlserve.execution.pipeline import Pipeline, as_model_error
from mlserve.execution.stages import as_exception, is_cancelling
from mlserve.job import Job
from mlserve.observability.loggers import get_logger
from mlserve.streaming import Channel

__all__ = ["run_async_stream", "run_stream"]

logger = get_logger(__name__)


def run_stream(
    handler: Any,
    pipeline: Pipeline,
    job: Job,
    channel: Channel[Any],
    ended: Callable[[], None],
) -> None:
    """Iterate a sync `stream` into a channel; the body of the stream's own thread."""
    error: MLServeError | None = None
    generator: Any = None
    if job.call.cancelled:  # it waited too long for its turn
        channel.end()
        ended()
        return
    try:
        generator = _iterator(handler.stream(*_arguments(pipeline, job)), "__iter__")
        accept, call, put = pipeline.contract.chunk.accept, job.call, channel.put
        for chunk in generator:
            if call.cancelled or not put(accept(chunk)):
                break
    except BaseException as exc:  # noqa: BLE001 - user code may raise anything
        error = _as_stream_error(exc, pipeline, job)
    finally:
        try:
            if generator is not None and hasattr(generator, "close"):
                generator.close()
        except BaseException:
            logger.exception("hook.stream.close.failed", extra={"model": pipeline.name})
        channel.end(error)
        error = None  # its cause's traceback holds this frame
        ended()


async def run_async_stream(
    handler: Any,
    pipeline: Pipeline,
    job: Job,
    channel: Channel[Any],
    ended: Callable[[], None],
) -> None:
    """Iterate an async `stream` into a channel, on the event loop."""
    error: MLServeError | None = None
    generator: Any = None
    if job.call.cancelled:  # it waited too long for its turn
        channel.end()
        ended()
        return
    try:
        generator = _iterator(handler.stream(*_arguments(pipeline, job)), "__aiter__")
        accept, call, aput = pipeline.contract.chunk.accept, job.call, channel.aput
        async for chunk in generator:
            if call.cancelled or not await aput(accept(chunk)):
                break
    except BaseException as exc:
        error = _as_stream_error(exc, pipeline, job)
        if is_cancelling():
            raise
    finally:
        try:
            if generator is not None and hasattr(generator, "aclose"):
                await generator.aclose()
        except BaseException:
            logger.exception("hook.stream.close.failed", extra={"model": pipeline.name})
        channel.end(error)
        error = None  # its cause's traceback holds this frame
        ended()


def _arguments(pipeline: Pipeline, job: Job) -> tuple[Any, ...]:
    wants_call = pipeline.contract.hooks["stream"].wants_call
    return (job.payload, job.call) if wants_call else (job.payload,)


def _iterator(value: Any, method: str) -> Any:
    if isinstance(value, str | bytes | dict) or not hasattr(value, method):
        raise ModelOutputError(
            f"`stream` returned a value of type `{type(value).__name__}`. Make it a generator:"
            " `yield` each chunk."
        )
    return getattr(value, method)()


def _as_stream_error(error: BaseException, pipeline: Pipeline, job: Job) -> MLServeError:
    pipeline.note_error(error)
    if isinstance(error, ModelOutputError):
        logger.error("stream.chunk.refused: %s", error, extra={"model": pipeline.name})
        return error
    return as_model_error(as_exception(error), "stream", pipeline.name, job)
